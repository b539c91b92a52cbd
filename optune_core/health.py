"""Check that an iteration's fresh data is worth training on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from optune_core.errors import UnhealthyData
from optune_core.parts.section import Section


class Health(Section):
    """The section `health`: limits at which a run stops rather than trains on rubbish. They change no result, so they
    may be changed in a run; common-sense values, none of them the paper's."""

    max_dropped: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of the regenerated prompts that may end without a fresh pair."""
    min_distinct: float = Field(default=0.1, ge=0.0, le=1.0)
    """Smallest share of distinct responses among the fresh ones: below it the policy says one thing to everything."""
    min_length: float = Field(default=0.1, ge=0.0)
    """Smallest mean length of the fresh responses, as a share of iteration 0's: below it the policy falls silent."""
    max_truncated: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of the fresh responses that may be cut at `generation.max_tokens`."""


@dataclass(frozen=True)
class Freshness:
    """Counts and lengths of an iteration's fresh data."""

    prompts: int
    """Number of prompts that were to be regenerated."""
    pairs: int
    """Number of fresh pairs made from their responses."""
    reasons: Mapping[str, int]
    """Number of prompts without a fresh pair, by reason."""
    responses: int
    """Number of responses."""
    distinct: int
    """Number of different responses."""
    truncated: int
    """Number of responses that were cut at `generation.max_tokens`."""
    mean_tokens: float
    """Mean response length in tokens."""
    first_mean_tokens: float
    """Mean response length in iteration 0, in tokens."""


def check_health(fresh: Freshness, limits: Health, iteration: int) -> None:
    """Compare fresh data with the limits of the configuration. Data without responses (offline DPO) is healthy.

    Raises:
        UnhealthyData: at least one limit is exceeded; the message shows the arithmetic of each, and what to do.
    """
    if problems := _problems(fresh, limits):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UnhealthyData(
            f"iteration {iteration} is not trained, because its fresh data exceeds limits of `health`:\n{lines}\n"
            "Look at the responses (`optune show`), then correct the reward, the sampling or the learning rate in a "
            "new run (--new-run); or loosen the limit under `health` and continue"
        )


def _problems(fresh: Freshness, limits: Health) -> list[str]:
    if fresh.responses == 0:
        return []
    problems = []
    dropped = fresh.prompts - fresh.pairs
    if dropped > limits.max_dropped * fresh.prompts:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(fresh.reasons.items()))
        problems.append(
            f"{dropped} of {fresh.prompts} prompts have no fresh pair ({reasons}), "
            f"more than health.max_dropped = {limits.max_dropped:g}"
        )
    if fresh.distinct < limits.min_distinct * fresh.responses:
        problems.append(
            f"{fresh.distinct} of {fresh.responses} responses are distinct, "
            f"less than health.min_distinct = {limits.min_distinct:g}"
        )
    if fresh.truncated > limits.max_truncated * fresh.responses:
        problems.append(
            f"{fresh.truncated} of {fresh.responses} responses are cut at generation.max_tokens, "
            f"more than health.max_truncated = {limits.max_truncated:g}"
        )
    if fresh.mean_tokens < limits.min_length * fresh.first_mean_tokens:
        problems.append(
            f"responses have {fresh.mean_tokens:.1f} tokens on average and had {fresh.first_mean_tokens:.1f} in "
            f"iteration 0, less than the share health.min_length = {limits.min_length:g} of it"
        )
    return problems
