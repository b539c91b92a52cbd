"""Rules that choose one preference pair per prompt from its scored responses, or name the reason for having none.

A block is a table of responses with their scores. The responses of a prompt are consecutive rows of one block, by
ascending sample number. A rule handles all prompts of a block at once and returns row numbers of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import ConservationError

Rows = npt.NDArray[np.int64]
"""Row numbers of a table, one per prompt."""
Mask = npt.NDArray[np.bool_]
"""One boolean per row of a table."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of the prompts of a block, one entry per prompt in the block's order."""

    first: Rows
    """Row of the prompt's first response."""
    chosen: Rows
    """Row of the chosen response; meaningless where the prompt has no pair."""
    rejected: Rows
    """Row of the rejected response; meaningless where the prompt has no pair."""
    reason: pa.Array
    """Reason why the prompt has no pair (string); null where it has one."""


def best_against_worst(block: pa.Table) -> Pairs:
    """Pair each prompt's response of highest reward with that of lowest reward (for K = 2 samples, the paper's pair).

    Among equal rewards the lower sample number is taken, for both sides. A prompt has no pair if fewer than two
    responses are usable (`one_left:<outcomes>`), if all usable responses are the same tokens (`identical`), or if all
    their rewards are equal (`tied`).

    Args:
        block: columns prompt_id, sample, response_token_ids, reward (float64, null unless ok), outcome.

    Raises:
        ConservationError: a response is there twice, or a prompt's responses are not in ascending order.
    """
    first = _first_rows(block)
    prompt = np.repeat(np.arange(len(first)), np.diff(np.append(first, block.num_rows)))
    usable: Mask = pc.equal(block["outcome"], "ok").to_numpy()
    reward = block["reward"].to_numpy()
    assert not np.isnan(reward[usable]).any(), "an ok response has a reward"
    highest = np.maximum.reduceat(np.where(usable, reward, -np.inf), first)
    lowest = np.minimum.reduceat(np.where(usable, reward, np.inf), first)

    few = np.add.reduceat(usable, first, dtype=np.int64) < 2
    identical = _all_identical(block, first, prompt, usable)
    reason = pc.case_when(
        pc.make_struct(pa.array(few), pa.array(identical), pa.array(highest == lowest)),
        pc.binary_join_element_wise("one_left", _failures(block, first), ":"),
        "identical",
        "tied",
    )
    return Pairs(
        first=first,
        chosen=_first_where(usable & (reward == highest[prompt]), first),
        rejected=_first_where(usable & (reward == lowest[prompt]), first),
        reason=reason,
    )


def as_given(block: pa.Table) -> Pairs:
    """Pair the responses of a fixed preference set: sample 0 is chosen, sample 1 rejected, regardless of the rewards.

    This is offline DPO. A prompt has no pair if a reward is missing (`unscored:<outcomes>`).

    Args:
        block: columns prompt_id, sample, outcome; exactly the samples 0 and 1 of every prompt.

    Raises:
        ConservationError: a prompt has other samples.
    """
    first = _first_rows(block)
    if not np.array_equal(block["sample"].to_numpy(), np.tile([0, 1], len(first))):
        raise ConservationError(
            f"a fixed preference set has exactly the samples 0 and 1 of each prompt, but there are {block.num_rows} "
            f"responses to {len(first)} prompts with other sample numbers"
        )
    failures = _failures(block, first)
    reason = pc.if_else(
        pc.equal(failures, ""), pa.scalar(None, pa.string()), pc.binary_join_element_wise("unscored", failures, ":")
    )
    return Pairs(first=first, chosen=first, rejected=first + 1, reason=reason)


def _first_rows(block: pa.Table) -> Rows:
    """Return the row of each prompt's first response, in the block's order."""
    ids = block["prompt_id"]
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    wrong = np.flatnonzero(same & (np.diff(block["sample"].to_numpy()) <= 0))
    if len(wrong):
        prompt_id, sample = ids[wrong[0] + 1].as_py(), block["sample"][wrong[0] + 1].as_py()
        raise ConservationError(
            f"response {sample} of prompt {prompt_id!r} is there twice, or after a response with a higher number"
        )
    return np.flatnonzero(np.append(True, ~same))


def _first_where(mask: Mask, first: Rows) -> Rows:
    """Return the lowest row of each prompt for which the mask is true, or the number of rows if there is none."""
    rows: Rows = np.minimum.reduceat(np.where(mask, np.arange(len(mask)), len(mask)), first)
    return rows


def _all_identical(block: pa.Table, first: Rows, prompt: Rows, usable: Mask) -> Mask:
    """Return whether all usable responses of a prompt are the same tokens."""
    first_usable = _first_where(usable, first)
    others = np.flatnonzero(usable)
    others = others[others != first_usable[prompt[others]]]
    tokens = _as_bytes(block["response_token_ids"].combine_chunks())
    equal = pc.equal(tokens.take(pa.array(others)), tokens.take(pa.array(first_usable[prompt[others]])))
    different = np.bincount(prompt[others], weights=~equal.to_numpy(zero_copy_only=False), minlength=len(first))
    same: Mask = different == 0
    return same


def _as_bytes(token_ids: pa.ListArray) -> pa.Array:
    """View lists of int32 as byte strings over the same memory, because Arrow compares byte strings but not lists."""
    values = token_ids.values
    offsets = (token_ids.offsets.to_numpy().astype(np.int64) + values.offset) * 4
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(token_ids), [None, pa.py_buffer(offsets), values.buffers()[1]]
    )


def _failures(block: pa.Table, first: Rows) -> pa.Array:
    """Return each prompt's outcomes other than ok, sorted and joined by commas."""
    outcomes = block["outcome"].combine_chunks().dictionary_encode()
    codes = outcomes.indices.to_numpy()
    found = sorted((name, code) for code, name in enumerate(outcomes.dictionary.to_pylist()) if name != "ok")
    sets = np.zeros(len(first), np.int64)
    for bit, (_, code) in enumerate(found):
        sets |= np.logical_or.reduceat(codes == code, first).astype(np.int64) << bit
    distinct, of_prompt = np.unique(sets, return_inverse=True)
    joined = [",".join(name for bit, (name, _) in enumerate(found) if each >> bit & 1) for each in distinct.tolist()]
    return pa.array(joined, pa.string()).take(pa.array(of_prompt))
