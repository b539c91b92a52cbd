"""The replay set D: one row a prompt, merged anew in every iteration (Algorithm 1). Conservation is checked here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import ConservationError
from optune_core.pairs import Candidate, Pair, best_against_worst
from optune_core.schemas import PROMPTS, REPLAY

PAIR_COLUMNS = [name for name in REPLAY.names if name not in (*PROMPTS.names, "status", "reason")]


def empty_replay(prompts: pa.Table) -> pa.Table:
    """D before iteration 0: every prompt, none with a pair."""
    rows = prompts.num_rows
    columns: dict[str, Any] = {name: prompts[name] for name in PROMPTS.names}
    columns |= {name: pa.nulls(rows, REPLAY.field(name).type) for name in PAIR_COLUMNS}
    columns["status"] = pa.array(["unpaired"] * rows, pa.string())
    columns["reason"] = pa.array(["not_generated"] * rows, pa.string())
    return pa.table(columns, schema=REPLAY)


def pair_responses(responses: pa.Table, scores: pa.Table) -> dict[str, Pair | str]:
    """The pair, or the reason for none, of every prompt that was generated for.

    Args:
        responses: schema RESPONSES.
        scores: schema SCORES, one row a response.

    Raises:
        ConservationError: a response has no score, or a score no response.
    """
    if sorted(_keys(responses)) != sorted(_keys(scores)):
        raise ConservationError(f"{responses.num_rows} responses and {scores.num_rows} scores do not match one to one")
    graded = {key: grade for key, grade in zip(_keys(scores), _columns(scores, "reward", "outcome"), strict=True)}
    candidates: dict[str, list[Candidate]] = {}
    for (prompt_id, sample), (token_ids,) in zip(
        _keys(responses), _columns(responses, "response_token_ids"), strict=True
    ):
        reward, outcome = graded[prompt_id, sample]
        candidates.setdefault(prompt_id, []).append(Candidate(sample, tuple(token_ids), reward, outcome))
    return {prompt_id: best_against_worst(group) for prompt_id, group in candidates.items()}


def given_pairs(scores: pa.Table) -> dict[str, Pair | str]:
    """A fixed preference set: sample 0 is chosen and sample 1 rejected, whatever the rewards say (offline DPO).

    Args:
        scores: schema SCORES, samples 0 and 1 of every prompt.

    Returns:
        The pair of every prompt, or `unscored:<outcomes>` where a reward is missing.
    """
    failed: dict[str, set[str]] = {}
    for prompt_id, outcome in _columns(scores, "prompt_id", "outcome"):
        failed.setdefault(prompt_id, set()).update({outcome} - {"ok"})
    return {
        prompt_id: f"unscored:{','.join(sorted(outcomes))}" if outcomes else Pair(chosen=0, rejected=1)
        for prompt_id, outcomes in failed.items()
    }


def fresh_pairs(responses: pa.Table, scores: pa.Table, pairs: dict[str, Pair | str], iteration: int) -> pa.Table:
    """The pairs as replay rows (prompt_id and PAIR_COLUMNS), sorted by prompt id."""
    row_of = {key: row for row, key in enumerate(_keys(responses))}
    reward_of = dict(zip(_keys(scores), scores["reward"].to_pylist(), strict=True))
    found = sorted((prompt_id, pair) for prompt_id, pair in pairs.items() if isinstance(pair, Pair))
    columns: dict[str, Any] = {"prompt_id": pa.array([prompt_id for prompt_id, _ in found], pa.string())}
    for side in ("chosen", "rejected"):
        keys = [(prompt_id, getattr(pair, side)) for prompt_id, pair in found]
        rows = pa.array([row_of[key] for key in keys], pa.int64())
        columns[side] = responses["response"].take(rows)
        columns[f"{side}_token_ids"] = responses["response_token_ids"].take(rows)
        columns[f"{side}_reward"] = pa.array([reward_of[key] for key in keys], pa.float64())
    columns["generated_at"] = pa.array([iteration] * len(found), pa.int32())
    schema = pa.schema([REPLAY.field("prompt_id"), *[REPLAY.field(name) for name in PAIR_COLUMNS]])
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def merge(previous: pa.Table, selected: list[str], fresh: pa.Table, reasons: dict[str, str]) -> pa.Table:
    """D_t: fresh pairs for the regenerated prompts, the stored pair for all others.

    A prompt that was regenerated in vain keeps its previous pair (`kept`), or stays without one (`unpaired`);
    either way `reason` says why.

    Args:
        previous: D_{t-1}, schema REPLAY.
        selected: prompt ids that were to be regenerated.
        fresh: from `fresh_pairs`.
        reasons: selected prompt id → why it has no fresh pair.

    Returns:
        D_t, schema REPLAY, the prompts of `previous` in their order.

    Raises:
        ConservationError: prompts in ≠ pairs out + named reasons, or a prompt is unknown or twice there.
    """
    prompt_ids = previous["prompt_id"].to_pylist()
    fresh_ids = fresh["prompt_id"].to_pylist()
    _check_conservation(prompt_ids, selected, fresh_ids, reasons)

    # Row of each prompt in [previous; fresh]: one gather a column.
    fresh_row = {prompt_id: len(prompt_ids) + row for row, prompt_id in enumerate(fresh_ids)}
    take = pa.array([fresh_row.get(prompt_id, row) for row, prompt_id in enumerate(prompt_ids)], pa.int64())
    columns: dict[str, Any] = {name: previous[name] for name in PROMPTS.names}
    for name in PAIR_COLUMNS:
        columns[name] = pa.chunked_array([*previous[name].chunks, *fresh[name].chunks], REPLAY.field(name).type).take(
            take
        )

    has_pair = pc.is_valid(previous["chosen_token_ids"]).to_pylist()
    old_reasons = previous["reason"].to_pylist()
    status: list[str] = []
    reason: list[str | None] = []
    for prompt_id, paired, old in zip(prompt_ids, has_pair, old_reasons, strict=True):
        if prompt_id in fresh_row:
            status.append("regenerated")
            reason.append(None)
        elif prompt_id in reasons:
            status.append("kept" if paired else "unpaired")
            reason.append(reasons[prompt_id])
        else:
            status.append("reused" if paired else "unpaired")
            reason.append(None if paired else old)
    columns["status"] = pa.array(status, pa.string())
    columns["reason"] = pa.array(reason, pa.string())
    return pa.table({name: columns[name] for name in REPLAY.names}, schema=REPLAY)


def trainable(replay: pa.Table) -> pa.Table:
    """The rows that have a pair."""
    return replay.filter(pc.is_valid(replay["chosen_token_ids"]))


def _check_conservation(
    prompt_ids: list[str], selected: list[str], fresh_ids: list[str], reasons: dict[str, str]
) -> None:
    if len(set(prompt_ids)) != len(prompt_ids):
        twice = [prompt_id for prompt_id, count in Counter(prompt_ids).items() if count > 1]
        raise ConservationError(f"{len(twice)} prompts stand twice in the replay set, first {twice[0]!r}")
    accounted = Counter([*fresh_ids, *reasons])
    if accounted != Counter(selected):
        odd = sorted((accounted - Counter(selected)) + (Counter(selected) - accounted))
        raise ConservationError(
            f"{len(selected)} prompts selected, but {len(fresh_ids)} fresh pairs + {len(reasons)} named drops "
            f"do not add up to them: {len(odd)} differ, first {odd[0]!r}"
        )
    unknown = set(selected) - set(prompt_ids)
    if unknown:
        raise ConservationError(f"{len(unknown)} selected prompts are not in the replay set, first {min(unknown)!r}")


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True))


def _columns(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))
