"""The replay set D: one row per prompt, merged in every iteration (Algorithm 1). Conservation is checked here.

Responses, scores, fresh pairs and the previous replay set are streams of tables in the order of the prompts. They are
read side by side, so the memory does not grow with the number of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.id_hash import hash_ids
from optune_core.data.row_groups import in_groups
from optune_core.data.schemas import PROMPTS, REPLAY, RESPONSES, SCORES, only
from optune_core.errors import ConservationError
from optune_core.history import HISTORY, NOTHING_YET, REWARD_MOMENTS, advance, reward_moments
from optune_core.pairs import Pairs, Rows

PAIR_COLUMNS = [name for name in REPLAY.names if name not in (*PROMPTS.names, "status", "reason", *HISTORY)]
FRESH = only(REPLAY, "prompt_id", *PAIR_COLUMNS, "reason", *REWARD_MOMENTS)
"""Schema of an iteration's results, one row per selected prompt: a pair or the reason for having none, and the moments
of the responses' rewards."""
PAIRED_RESPONSES = only(RESPONSES, "prompt_id", "sample", "response", "response_token_ids", "policy_logps")
"""Schema of the responses from which pairs are made."""

_OF_RESPONSE = {
    "response": "",
    "response_token_ids": "_token_ids",
    "reward": "_reward",
    "policy_logps": "_policy_logps",
}
_STATUS = pa.array(["unpaired", "reused", "kept", "regenerated"])
_UNPAIRED, _REUSED, _KEPT, _REGENERATED = range(4)


def empty_replay(prompts: pa.Table, schema: pa.Schema = REPLAY) -> pa.Table:
    """Make D before iteration 0: every prompt, none with a pair.

    Args:
        prompts: columns of PROMPTS that `schema` names.
        schema: columns of REPLAY to make.
    """
    columns: dict[str, Any] = {name: pa.nulls(prompts.num_rows, schema.field(name).type) for name in schema.names}
    columns |= {name: prompts[name] for name in schema.names if name in PROMPTS.names}
    for name, value in (("status", "unpaired"), ("reason", "not_generated"), *NOTHING_YET.items()):
        if name in columns:
            columns[name] = pa.repeat(pa.scalar(value, schema.field(name).type), prompts.num_rows)
    return pa.table(columns, schema=schema)


def scored(responses: Iterable[pa.Table], scores: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join responses with their scores, in blocks for `pairs`: all responses of a prompt are in one block.

    Args:
        responses: schema PAIRED_RESPONSES; the responses of a prompt are consecutive rows.
        scores: schema SCORES, one row per response, in the same order.

    Returns:
        Blocks with the columns of PAIRED_RESPONSES, reward and outcome.

    Raises:
        ConservationError: a response has no score, or a score has no response.
    """
    rest = _with_scores(PAIRED_RESPONSES.empty_table(), SCORES.empty_table())
    for some, their_scores in zip_longest(in_groups(responses), in_groups(scores)):
        table = pa.concat_tables([rest, _with_scores(some, their_scores)])
        # The next table may have more responses of the last prompt.
        last = pc.index(table["prompt_id"], table["prompt_id"][-1]).as_py()
        if last:
            yield table.slice(0, last).combine_chunks()
        rest = table.slice(last)
    if rest.num_rows:
        yield rest.combine_chunks()


def fresh_pairs(
    blocks: Iterable[pa.Table], rule: Callable[[pa.Table], Pairs], iteration: int, sampled_from: int
) -> Iterator[pa.Table]:
    """Make each prompt's pair, or name the reason for having none.

    Args:
        blocks: blocks of `scored`.
        rule: rule of module `pairs`.
        iteration: number t of the iteration.
        sampled_from: iteration of the policy that sampled the responses.

    Returns:
        Tables of schema FRESH, one row per prompt, in the order of the responses.
    """
    for block in blocks:
        pairs = rule(block)
        paired = pc.is_null(pairs.reason)
        unpaired = pc.is_valid(pairs.reason).to_numpy(zero_copy_only=False)
        columns: dict[str, Any] = {"prompt_id": block["prompt_id"].take(pa.array(pairs.first)), "reason": pairs.reason}
        for side, rows in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            taken = block.select(list(_OF_RESPONSE)).take(pa.array(rows, mask=unpaired))
            columns |= {f"{side}{suffix}": taken[name] for name, suffix in _OF_RESPONSE.items()}
        columns |= reward_moments(block, pairs.first)
        columns["generated_at"] = pc.if_else(paired, pa.scalar(iteration, pa.int32()), None)
        columns["sampled_from"] = pc.if_else(paired, pa.scalar(sampled_from, pa.int32()), None)
        yield pa.table({name: columns[name] for name in FRESH.names}, schema=FRESH)


def accounted(selected: Iterable[pa.Table], fresh: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Pass `fresh` on unchanged, and check that it has a row for every selected prompt and for no other.

    Args:
        selected: column prompt_id: the prompts that had to be regenerated.
        fresh: schema FRESH.

    Raises:
        ConservationError: selected prompts ≠ fresh pairs + named reasons.
    """
    for wanted, group in zip_longest(in_groups(selected), in_groups(fresh), fillvalue=FRESH.empty_table()):
        if not wanted["prompt_id"].equals(group["prompt_id"]):
            both = zip_longest(wanted["prompt_id"].to_pylist(), group["prompt_id"].to_pylist())
            expected, found = next(pair for pair in both if pair[0] != pair[1])
            raise ConservationError(
                "fresh pairs + named drops do not add up to the selected prompts: the first difference is at prompt "
                f"{found if expected is None else expected!r} (selected: {expected!r}, found: {found!r})"
            )
        yield group


def merge(previous: Iterable[pa.Table], fresh: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Merge D_t: fresh pairs for the regenerated prompts, the previous pairs for all others.

    A prompt whose regeneration gave no pair keeps its previous pair (`kept`), or remains without one (`unpaired`); in
    both cases the column `reason` says why.

    Args:
        previous: D_{t-1}, schema REPLAY, each prompt once (`require_each_once`).
        fresh: schema FRESH, its prompts in the order that they have in `previous`.

    Returns:
        D_t, schema REPLAY, the prompts of `previous` in their order.

    Raises:
        ConservationError: a prompt of `fresh` is not in `previous`, or is out of order.
    """
    coming = iter(fresh)
    waiting = FRESH.empty_table()
    for group in previous:
        while waiting.num_rows < group.num_rows and (more := next(coming, None)) is not None:
            waiting = pa.concat_tables([waiting, more])
        head = waiting.slice(0, group.num_rows).combine_chunks()
        rows = pc.index_in(head["prompt_id"], value_set=group["prompt_id"]).to_numpy()  # NaN: not in this group
        here = int(np.argmax(np.append(np.isnan(rows), True)))
        rows = rows[:here].astype(np.int64)
        if np.any(np.diff(rows) <= 0):
            out_of_place = head["prompt_id"][int(np.argmax(np.diff(rows) <= 0)) + 1].as_py()
            raise ConservationError(f"fresh prompt {out_of_place!r} is not in the order of the replay set")
        yield _merged(group, head.slice(0, here), rows)
        waiting = waiting.slice(here)
    left = pa.concat_tables([table.select(["prompt_id"]) for table in (waiting, *coming)])
    if left.num_rows:
        raise ConservationError(
            f"{left.num_rows} fresh prompts are not in the replay set, or not in its order, the first of them "
            f"{left['prompt_id'][0].as_py()!r}"
        )


def require_each_once(prompt_ids: pa.ChunkedArray) -> None:
    """Raise ConservationError if a prompt is in the replay set twice.

    Only ids that share a hash are compared, which is many times faster than a set of all ids.
    """
    hashes = hash_ids(prompt_ids, "")
    ordered = np.sort(hashes)
    suspect = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(suspect):
        counts = pc.value_counts(prompt_ids.filter(pa.array(np.isin(hashes, suspect))))
        twice = [entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1]
        if twice:
            raise ConservationError(f"{len(twice)} prompts are in the replay set twice, the first of them {twice[0]!r}")


def trainable(replay: pa.Table) -> pa.Table:
    """Return the rows that have a pair. Needs the column generated_at."""
    return replay.filter(pc.is_valid(replay["generated_at"]))


def _with_scores(responses: pa.Table | None, scores: pa.Table | None) -> pa.Table:
    keys = ("prompt_id", "sample")
    if responses is None or scores is None or not all(responses[key].equals(scores[key]) for key in keys):
        sides = [[] if table is None else table.select(keys).to_pylist() for table in (responses, scores)]
        response, score = next(pair for pair in zip_longest(*sides) if pair[0] != pair[1])
        raise ConservationError(
            f"responses and scores do not match one to one: the first difference is response {response}, score {score}"
        )
    return responses.append_column("reward", scores["reward"]).append_column("outcome", scores["outcome"])


def _merged(group: pa.Table, fresh: pa.Table, rows: Rows) -> pa.Table:
    """Merge one table of D_t.

    Args:
        group: rows of D_{t-1}, schema REPLAY.
        fresh: schema FRESH, for some prompts of `group`.
        rows: int64, (rows of `fresh`,): row of each of these prompts in `group`.
    """
    paired = pc.is_null(fresh["reason"]).to_numpy()
    had_pair = pc.is_valid(group["generated_at"]).to_numpy()
    status = np.where(had_pair, _REUSED, _UNPAIRED)
    status[rows] = np.where(paired, _REGENERATED, np.where(had_pair[rows], _KEPT, _UNPAIRED))

    # Rows in the concatenation of group and fresh, so that each column needs one gather.
    numbers = np.arange(len(fresh)) + len(group)
    pair_from = np.arange(len(group))
    pair_from[rows[paired]] = numbers[paired]
    reason_from = np.arange(len(group))
    reason_from[rows] = numbers
    no_reason = status == _REUSED  # a pair that was kept for a reason is merely reused in the next iteration
    columns: dict[str, Any] = {name: group[name] for name in PROMPTS.names}
    for names, source in ((PAIR_COLUMNS, pa.array(pair_from)), (["reason"], pa.array(reason_from, mask=no_reason))):
        both = pa.concat_tables([group.select(names), fresh.select(names)]).combine_chunks()
        columns |= dict(zip(names, both.take(source).columns, strict=True))
    columns["status"] = _STATUS.take(pa.array(status))
    columns |= advance(group, fresh, rows)
    return pa.table({name: columns[name] for name in REPLAY.names}, schema=REPLAY)
