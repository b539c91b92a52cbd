"""Stage `comparisons`: pairs of responses, each judged in both orders, in shards of prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.schemas import ANSWERS, COMPARISONS, write_table
from optune_core.data.shards import RESPONSES_FILE, read_shards, shard_parents
from optune_core.errors import ConservationError
from optune_core.evaluation.win_score.judge import JudgeSpec, Pair, Rating
from optune_core.evaluation.win_score.judgements import combine_judgements, judgement
from optune_core.evaluation.win_score.opening import open_judge
from optune_core.evaluation.win_score.rating import rating_prompt
from optune_core.evaluation.win_score.sections import OpenAIJudge
from optune_core.process.background import Background
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work
from optune_core.storage.canonical import digest

VERSION = 2
FILE = "comparisons.parquet"

Row = dict[str, Any]


class Spec(BaseModel):
    judge: JudgeSpec
    prompts: int
    """Number of prompts, which the policies and the baseline have all answered."""
    shard_size: int
    policies: list[list[Ref]]
    """Shards of each policy's responses; of several samples the first is judged."""
    baseline: list[Ref]


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work a shard of prompts, policy after policy."""
    return [work for work, _ in _shards(spec)]


@dataclass
class _Shard:
    """A shard whose pairs the judge is rating."""

    work: Work
    rows: range
    """Its rows among the pairs of all policies, counted from 0."""
    ratings: dict[int, Rating] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.ratings) == 2 * len(self.rows)


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Judge the shards that are missing; each is committed when its last rating is there. The judge starts once.

    Raises:
        ConservationError: a policy and the baseline do not answer the same prompts.
        JudgeError, TransientError: the judge cannot be asked; committed shards stay.
    """
    missing = [_Shard(work, rows) for work, rows in _shards(spec) if store.find(work) is None]
    pairs = _paired(store, spec)
    progress("start judge", 0, 0)
    judge = open_judge(spec.judge, store)
    shard_of = {row: shard for shard in missing for row in shard.rows}
    done, before = 0, time.monotonic()
    with Background() as background:
        for rating in judge.rate(_both_orders(pairs, list(shard_of))):
            reach("comparisons.rating")
            shard = shard_of[rating.index // 2]
            shard.ratings[rating.index] = rating
            done += 1
            progress("judge", done, 2 * len(shard_of))
            if shard.complete:
                # Shards overlap: a shard's seconds are those since the one before it, so that their sum is right.
                began, before = before, time.monotonic()
                rows = [_compared(pairs[row], row, shard.ratings, spec) for row in shard.rows]
                background.run(_commit, store, shard.work, rows, before - began)
    if done != 2 * len(shard_of):
        raise ConservationError(f"the judge gave {done} ratings for {2 * len(shard_of)} pairs")


def _commit(store: ArtifactStore, work: Work, rows: list[Row], seconds: float) -> None:
    outcomes = [row["outcome"] for row in rows]
    metrics = {outcome: outcomes.count(outcome) for outcome in ("win", "tie", "lose", "malformed")}
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=COMPARISONS), COMPARISONS, scratch / FILE)
        store.commit(work, scratch, metrics=metrics, timing={"seconds": seconds, "ended_at": time.time()})


def _shards(spec: Spec) -> list[tuple[Work, range]]:
    judge = spec.judge
    shared: dict[str, Ref] = {}
    if isinstance(judge, OpenAIJudge):
        params = {name: value for name, value in judge.identity().items() if name not in OpenAIJudge.PRICES}
        params |= {"rating_prompt": digest(dict(rating_prompt()))}
    else:
        params = {"reward": judge.reward.scoring, "tie_margin": judge.tie_margin}
        if judge.reward.model is not None:
            shared["judge"] = judge.reward.model
    every = range(spec.prompts)
    found = []
    for number, policy in enumerate(spec.policies):
        parents = shared | shard_parents("policy", policy) | shard_parents("baseline", spec.baseline)
        for first in every[:: spec.shard_size]:
            rows = every[first : first + spec.shard_size]
            work = Work("comparisons", VERSION, {"judge": params, "rows": [rows.start, len(rows)]}, parents)
            before = number * spec.prompts
            found.append((work, range(before + rows.start, before + rows.stop)))
    return found


def _paired(store: ArtifactStore, spec: Spec) -> list[tuple[Row, str]]:
    """Return each policy's answers in their order (rows of schema ANSWERS), each with the baseline's response."""

    def first_answers(shards: list[Ref]) -> list[Row]:
        rows = read_shards(store, shards, RESPONSES_FILE, ANSWERS).to_pylist()
        return [row for row in rows if row["sample"] == 0]

    baseline = first_answers(spec.baseline)
    others = {row["prompt_id"]: row["response"] for row in baseline}
    pairs: list[tuple[Row, str]] = []
    for shards in spec.policies:
        policy = first_answers(shards)
        if {row["prompt_id"] for row in policy} != others.keys() or len(policy) != len(baseline) or not policy:
            raise ConservationError(
                f"{len(policy)} answers of the policy, {len(baseline)} of the baseline: not the same"
            )
        if len(policy) != spec.prompts:
            raise ConservationError(f"{len(policy)} prompts are answered, {spec.prompts} were expected")
        pairs += [(row, others[row["prompt_id"]]) for row in policy]
    return pairs


def _both_orders(pairs: list[tuple[Row, str]], rows: list[int]) -> Iterator[Pair]:
    """Yield every pair twice in a row: pair 2·row has the policy's answer first, pair 2·row + 1 the baseline's."""
    for row in rows:
        answer, other = pairs[row]
        for order, answers in enumerate(((answer["response"], other), (other, answer["response"]))):
            yield Pair(2 * row + order, answer["prompt"], answer["messages"], answers)


def _compared(pair: tuple[Row, str], row: int, ratings: dict[int, Rating], spec: Spec) -> Row:
    """Return a row of schema COMPARISONS: both ratings from the policy's point of view, and the outcome."""
    answer, other = pair
    first, second = ratings[2 * row], ratings[2 * row + 1]
    own = first.scores, second.scores and (second.scores[1], second.scores[0])
    judged = [None if scores is None else judgement(*scores, spec.judge.tie_margin) for scores in own]
    problems = [rating.problem for rating in (first, second) if rating.problem is not None]
    compared: Row = {
        "prompt_id": answer["prompt_id"],
        "prompt": answer["prompt"],
        "policy_response": answer["response"],
        "baseline_response": other,
        "judge": spec.judge.description,
        "outcome": "malformed" if judged[0] is None or judged[1] is None else combine_judgements(judged[0], judged[1]),
        "reason": "; ".join(problems) or None,
    }
    for name, rating, scores, verdict in zip(("first", "second"), (first, second), own, judged, strict=True):
        compared[f"{name}_judgement"] = verdict
        compared[f"{name}_policy_score"], compared[f"{name}_baseline_score"] = scores or (None, None)
        compared[f"{name}_explanation"] = rating.explanation
    for count in ("requests", "prompt_tokens", "completion_tokens"):
        compared[count] = getattr(first.usage, count) + getattr(second.usage, count)
    return compared


STAGE = Stage("comparisons", Spec, works, run)
