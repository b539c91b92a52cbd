"""Warnings about a run: each rule is a pure function of `RunFacts`, with its limit and the number found.

The limits are judgement calls, none of them from the paper. `health` in the configuration stops a run; these only warn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from optune_core.reports.facts import IterationFacts, Record, ResponseCounts, RunFacts
from optune_core.words import percent, with_interval

MAX_LENGTH_DRIFT = 0.2
MAX_LENGTH_CORRELATION = 0.5
MAX_DISTINCT_LOSS = 0.1
MAX_DROPPED = 0.1
MAX_TIED = 0.05
MAX_TRUNCATED = 0.1
MIN_EFFECTIVE_SHARE = 0.5
MAX_FIRST_LOSS_ERROR = 1e-3


@dataclass(frozen=True)
class Caution:
    """A warning: something that is, or may be, wrong with a run."""

    title: str
    found: str
    """A sentence with the numbers found."""
    rule: str
    """Condition of the warning, and what it may mean."""
    level: Literal["serious", "notable"] = "notable"


def find_warnings(run: RunFacts) -> list[Caution]:
    """Return the warnings about a run, serious ones first."""
    found = [warning for rule in RULES for warning in rule(run)]
    return sorted(found, key=lambda warning: warning.level != "serious")


def reward_hacking(run: RunFacts) -> Iterator[Caution]:
    """Warn if the proxy rises and gold does not."""
    proxy, gold = run.overall.get("proxy"), run.overall.get("gold")
    if not _rises(proxy) or gold is None or gold["low"] > 0:
        return
    falls = gold["high"] < 0
    yield Caution(
        "Proxy up, gold down" if falls else "Proxy up, gold flat",
        f"Held-out proxy {_change(proxy)}, gold {_change(gold)}.",
        "The 95 % interval of the proxy's change is above 0 and that of gold's "
        + ("below 0: the policy exploits the reward model." if falls else "is not: the gain may be the reward model's.")
        + " Stop earlier, raise beta1, or train a better reward model.",
        "serious" if falls else "notable",
    )


def fewer_distinct(run: RunFacts) -> Iterator[Caution]:
    """Warn if the proxy rises while fewer responses to the same prompts are distinct."""
    if not _rises(run.overall.get("proxy")):
        return
    ends = _ends([each.answers for each in run.held_out])
    if ends is None or ends[0].distinct_share is None or ends[1].distinct_share is None:
        return
    before, after = ends[0].distinct_share, ends[1].distinct_share
    if before - after > MAX_DISTINCT_LOSS:
        yield Caution(
            "Fewer distinct responses",
            f"{percent(before, 0)} of π₀'s held-out responses are distinct, {percent(after, 0)} of the last policy's, "
            "while the proxy rises.",
            f"The share of distinct responses falls by more than {100 * MAX_DISTINCT_LOSS:.0f} points: a sign of "
            "reward hacking or of collapse.",
            "serious",
        )


def length_drift(run: RunFacts) -> Iterator[Caution]:
    """Warn if responses become longer or shorter; on held-out prompts if there are any, since those stay the same."""
    ends, what = _ends([each.answers for each in run.held_out]), "held-out responses"
    if ends is None:
        ends, what = _ends([each.fresh for each in run.iterations]), "fresh responses"
    if ends is None or ends[0].tokens == 0:
        return
    before, after = ends[0].mean_tokens, ends[1].mean_tokens
    drift = after / before - 1
    if abs(drift) > MAX_LENGTH_DRIFT:
        yield Caution(
            "Length drift",
            f"The mean length of {what} went from {before:.1f} to {after:.1f} tokens ({100 * drift:+.0f} %).",
            f"More than {percent(MAX_LENGTH_DRIFT, 0)} from the first to the last. A reward that favours length, or "
            "its absence, is learned before anything else.",
        )


def length_correlation(run: RunFacts) -> Iterator[Caution]:
    """Warn if the reward correlates strongly with response length."""
    rows = [(abs(r), r, each) for each in run.iterations if (r := each.correlations["both"]) is not None]
    high = [row for row in rows if row[0] > MAX_LENGTH_CORRELATION]
    if high:
        _, r, worst = max(high, key=lambda row: row[0])
        yield Caution(
            "Reward follows length",
            f"Pearson's r of reward and response length is {r:+.2f} in iteration {worst.iteration}, and beyond the "
            f"limit in {len(high)} of {len(run.iterations)} iterations.",
            f"|r| over all responses of the pairs is above {MAX_LENGTH_CORRELATION:g}: compare policies at equal "
            "length before you believe the reward.",
        )


def weak_reward_model(run: RunFacts) -> Iterator[Caution]:
    """Warn if the reward model is no more accurate than response length."""
    model = run.reward_model
    if model is None or model["accuracy/held_out"] > model["accuracy/length_only"]:
        return
    yield Caution(
        "Reward model no better than length",
        f"Accuracy {percent(model['accuracy/held_out'], 0)} on {model['held_out_pairs']} held-out pairs; the length "
        f"alone has {percent(model['accuracy/length_only'], 0)}.",
        "The accuracy is not above that of always preferring the longer (or always the shorter) response.",
    )


def dropped_prompts(run: RunFacts) -> Iterator[Caution]:
    """Warn if many prompts were regenerated without a new pair."""
    for each in _where(run, lambda row: row.selected and sum(_reasons(row).values()) > MAX_DROPPED * row.selected):
        reasons = _reasons(each)
        named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield Caution(
            f"Dropped prompts in iteration {each.iteration}",
            f"{sum(reasons.values())} of {each.selected} regenerated prompts have no fresh pair: {named}.",
            f"More than {percent(MAX_DROPPED, 0)} of the regenerated prompts.",
        )


def tied_rewards(run: RunFacts) -> Iterator[Caution]:
    """Warn if all responses have the same reward in many prompts."""
    for each in _where(run, lambda row: row.selected and _reasons(row)["tied"] > MAX_TIED * row.selected):
        yield Caution(
            f"Ties in iteration {each.iteration}",
            f"All usable responses have the same reward in {_reasons(each)['tied']} of {each.selected} regenerated "
            "prompts.",
            f"More than {percent(MAX_TIED, 0)} of them: the reward is too coarse, or the responses are too similar.",
        )


def truncated_responses(run: RunFacts) -> Iterator[Caution]:
    """Warn if many responses are truncated, so that the reward sees them without their end."""
    rows = [(each.fresh.truncated_share, each) for each in run.iterations if each.fresh is not None]
    many = [row for row in rows if row[0] > MAX_TRUNCATED]
    if many:
        share, worst = max(many, key=lambda row: row[0])
        yield Caution(
            "Truncated responses",
            f"{percent(share, 0)} of the fresh responses of iteration {worst.iteration} are truncated at "
            f"generation.max_tokens = {run.config['generation']['max_tokens']}; beyond the limit in {len(many)} of "
            f"{len(rows)} iterations.",
            f"More than {percent(MAX_TRUNCATED, 0)} of the fresh responses. Raise generation.max_tokens, or set "
            "generation.truncated=drop.",
        )


def few_effective_pairs(run: RunFacts) -> Iterator[Caution]:
    """Warn if the weights R leave few pairs to learn from."""
    rows = [(share, each) for each in run.iterations if (share := each.pairs.effective_share) is not None]
    low = [row for row in rows if row[0] < MIN_EFFECTIVE_SHARE]
    if low:
        share, worst = min(low, key=lambda row: row[0])
        yield Caution(
            "Few effective pairs",
            f"The weights R of iteration {worst.iteration} are worth {percent(share, 0)} of its pairs.",
            f"(ΣR)²/ΣR² is below {percent(MIN_EFFECTIVE_SHARE, 0)} of the pairs. That happens only where the reward "
            "contradicts many of the given preferences: otherwise R ≥ ½ and the share is at least 8/9.",
        )


def inexact_first_loss(run: RunFacts) -> Iterator[Caution]:
    """Warn if the first loss shows that policy and reference differ although their weights are equal."""
    for each in _where(run, lambda row: row.starts_at_reference and _loss_error(row) > MAX_FIRST_LOSS_ERROR):
        yield Caution(
            f"First loss not exact in iteration {each.iteration}",
            f"{each.summary['first_loss']:.5f} at the first step, mean(R)·ln 2 = "
            f"{each.summary['first_loss_expected']:.5f}.",
            f"They differ by more than {100 * MAX_FIRST_LOSS_ERROR:g} %, although the policy starts as its reference. "
            "Reference and policy round differently (training.reference_logps = engine does), or there is a defect.",
        )


RULES: list[Callable[[RunFacts], Iterator[Caution]]] = [
    reward_hacking,
    fewer_distinct,
    length_drift,
    length_correlation,
    weak_reward_model,
    dropped_prompts,
    tied_rewards,
    truncated_responses,
    few_effective_pairs,
    inexact_first_loss,
]


def _where(run: RunFacts, holds: Callable[[IterationFacts], object]) -> list[IterationFacts]:
    return [each for each in run.iterations if holds(each)]


def _ends(counts: list[ResponseCounts | None]) -> tuple[ResponseCounts, ResponseCounts] | None:
    """Return the first and the last of at least two known counts."""
    known = [each for each in counts if each is not None]
    return (known[0], known[-1]) if len(known) > 1 else None


def _reasons(each: IterationFacts) -> Counter[str]:
    return Counter(each.metrics["reasons"])


def _loss_error(each: IterationFacts) -> float:
    """Return the relative error of the first loss; 0 without a step."""
    first, expected = each.summary["first_loss"], each.summary["first_loss_expected"]
    return 0.0 if first is None or not expected else math.fabs(first / expected - 1)


def _rises(change: Record | None) -> bool:
    return change is not None and change["low"] > 0


def _change(change: Record | None) -> str:
    assert change is not None
    return with_interval(change["difference"], change["low"], change["high"])
