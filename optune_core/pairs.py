"""From scored responses to one preference pair a prompt, or to a named reason why there is none.

A block is a table of responses with their scores, in which the responses of a prompt stand together, by ascending
sample number. A rule works on all prompts of a block at once and answers in row numbers of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import ConservationError

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """One entry a prompt of the block, in its order."""

    first: Rows
    """Row of the prompt's first response."""
    chosen: Rows
    """Row of the chosen response; without a meaning where there is a reason."""
    rejected: Rows
    reason: pa.Array
    """Why there is no pair (string); null where there is one."""


def best_against_worst(block: pa.Table) -> Pairs:
    """The pair of a prompt: highest against lowest reward (with K = 2, the paper's pair).

    Equal rewards are settled by the lower sample number, equally for both ends. There is no pair where fewer than two
    responses are usable (`one_left:<outcomes>`), where all usable responses are the same tokens (`identical`), or
    where all their rewards are equal (`tied`).

    Args:
        block: columns prompt_id, sample, response_token_ids, reward (float64, null unless ok), outcome.

    Raises:
        ConservationError: a response stands twice, or not in its place.
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
    """A fixed preference set: sample 0 is chosen and sample 1 rejected, whatever the rewards say (offline DPO).

    There is no pair where a reward is missing (`unscored:<outcomes>`).

    Args:
        block: as for `best_against_worst`, samples 0 and 1 of every prompt.

    Raises:
        ConservationError: a prompt has other samples.
    """
    first = _first_rows(block)
    if not np.array_equal(block["sample"].to_numpy(), np.tile([0, 1], len(first))):
        raise ConservationError(f"{block.num_rows} responses of {len(first)} prompts are not samples 0 and 1 of each")
    failures = _failures(block, first)
    reason = pc.if_else(
        pc.equal(failures, ""), pa.scalar(None, pa.string()), pc.binary_join_element_wise("unscored", failures, ":")
    )
    return Pairs(first=first, chosen=first, rejected=first + 1, reason=reason)


def _first_rows(block: pa.Table) -> Rows:
    """Row of each prompt's first response, in the block's order."""
    ids = block["prompt_id"]
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    wrong = np.flatnonzero(same & (np.diff(block["sample"].to_numpy()) <= 0))
    if len(wrong):
        prompt_id, sample = ids[wrong[0] + 1].as_py(), block["sample"][wrong[0] + 1].as_py()
        raise ConservationError(
            f"response {sample} of prompt {prompt_id!r} stands twice, or behind one with a higher number"
        )
    return np.flatnonzero(np.append(True, ~same))


def _first_where(mask: Mask, first: Rows) -> Rows:
    """Lowest row of each prompt for which the mask holds; the number of rows where there is none."""
    rows: Rows = np.minimum.reduceat(np.where(mask, np.arange(len(mask)), len(mask)), first)
    return rows


def _all_identical(block: pa.Table, first: Rows, prompt: Rows, usable: Mask) -> Mask:
    """Whether all usable responses of a prompt are the same tokens."""
    leader = _first_where(usable, first)
    others = np.flatnonzero(usable)
    others = others[others != leader[prompt[others]]]
    tokens = _as_bytes(block["response_token_ids"].combine_chunks())
    equal = pc.equal(tokens.take(pa.array(others)), tokens.take(pa.array(leader[prompt[others]])))
    different = np.bincount(prompt[others], weights=~equal.to_numpy(zero_copy_only=False), minlength=len(first))
    same: Mask = different == 0
    return same


def _as_bytes(token_ids: pa.ListArray) -> pa.Array:
    """Lists of int32 as byte strings over the same memory: what Arrow can compare whole."""
    values = token_ids.values
    offsets = (token_ids.offsets.to_numpy().astype(np.int64) + values.offset) * 4
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(token_ids), [None, pa.py_buffer(offsets), values.buffers()[1]]
    )


def _failures(block: pa.Table, first: Rows) -> pa.Array:
    """The outcomes other than ok of each prompt's responses, sorted, joined by commas."""
    outcomes = block["outcome"].combine_chunks().dictionary_encode()
    codes = outcomes.indices.to_numpy()
    found = sorted((name, code) for code, name in enumerate(outcomes.dictionary.to_pylist()) if name != "ok")
    sets = np.zeros(len(first), np.int64)
    for bit, (_, code) in enumerate(found):
        sets |= np.logical_or.reduceat(codes == code, first).astype(np.int64) << bit
    distinct, of_prompt = np.unique(sets, return_inverse=True)
    joined = [",".join(name for bit, (name, _) in enumerate(found) if each >> bit & 1) for each in distinct.tolist()]
    return pa.array(joined, pa.string()).take(pa.array(of_prompt))
