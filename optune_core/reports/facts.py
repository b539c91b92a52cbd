"""The facts that a report shows: read by `analysis`, judged by `warnings`, drawn by `figures`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optune_core.statistics import Values

Record = dict[str, Any]
"""An object of a ledger's record or of a manifest's metrics, as it was in JSON."""


@dataclass(frozen=True)
class ResponseCounts:
    """Counts of a policy's responses."""

    responses: int
    tokens: int
    truncated: int
    """Those that end at `generation.max_tokens`."""
    distinct: int | None
    """Distinct ones, counted within each shard; None where the manifests are of a version without this number."""

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.responses

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.responses

    @property
    def distinct_share(self) -> float | None:
        return None if self.distinct is None else self.distinct / self.responses


@dataclass(frozen=True)
class PairFacts:
    """The pairs of D_t, one entry a pair, in the replay set's order."""

    chosen_rewards: Values
    rejected_rewards: Values
    chosen_tokens: Values
    rejected_tokens: Values
    made: dict[int, int]
    """Iteration in which pairs were made → how many pairs."""
    weights: Values
    """R of Eq. 6 for the pairs that are trained on; empty under a loss without weights."""

    @property
    def gaps(self) -> Values:
        return self.chosen_rewards - self.rejected_rewards

    @property
    def effective_share(self) -> float | None:
        """(ΣR)²/ΣR² as a share of the pairs. It is at least 8/9 if no chosen reward is below its rejected one."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares / len(self.weights) if squares else None


@dataclass(frozen=True)
class IterationFacts:
    """One committed iteration."""

    summary: Record
    """Its row from `summarise`."""
    metrics: Record
    """Metrics of the stage `replay`."""
    selected: int
    """Prompts that were selected for regeneration."""
    fresh: ResponseCounts | None
    """Responses to the selected prompts; None where nothing was generated (offline DPO)."""
    pairs: PairFacts
    correlations: dict[str, float | None]
    """Pearson's r of reward and length: over `chosen`, over `rejected`, over `both`."""
    gains: tuple[float, float] | None
    """Reward gained in the lower and in the upper half (`half_gains`); None where no prompt with a pair
    was regenerated."""
    log: list[Record]
    """train_log.jsonl: the metrics of each optimizer step."""
    log_ratios: dict[str, float | None]
    """Mean log π_θ(y|x)/π_ref(y|x) over the last quarter of the steps, in nats a response: `chosen`, `rejected`."""
    starts_at_reference: bool
    """True: the policy begins this iteration as its own reference, so that the first loss is mean(R)·ln 2."""
    code_version: str
    committed_at: float
    """Unix time in seconds at which its policy was committed, by the clock of the machine that trained."""

    @property
    def iteration(self) -> int:
        return int(self.summary["iteration"])

    @property
    def seconds(self) -> dict[str, float]:
        seconds: dict[str, float] = self.summary["seconds"]
        return seconds

    @property
    def kl_estimate(self) -> float | None:
        """Minus the mean log-ratio of both sides: KL(π_ref ‖ π_θ) if pairs were fresh, unselected samples of π_ref."""
        chosen, rejected = self.log_ratios["chosen"], self.log_ratios["rejected"]
        return None if chosen is None or rejected is None else 0.0 - (chosen + rejected) / 2


@dataclass(frozen=True)
class HeldOut:
    """π_t on the held-out prompts."""

    iteration: int
    """t."""
    change: dict[str, Record]
    """`proxy`, `gold` → `paired_difference` from π_0 to π_t, for rewards that some prompt has under both policies."""
    answers: ResponseCounts | None


@dataclass(frozen=True)
class RunFacts:
    """The facts that a run's page shows, without the examples."""

    run: str
    config: Record
    iterations: list[IterationFacts]
    held_out: list[HeldOut]
    """One entry a policy, from π_0 on; empty without held-out prompts."""
    evaluations: list[Record]
    """Evaluations of all kinds, as the ledger records them."""
    reward_model: Record | None
    """Metrics of the reward model that the flow trained; None for any other reward."""
    state: str
    """State of the last start, as a text (`state_text`); empty where it is not known."""
    store: str

    @property
    def wanted(self) -> int:
        return int(self.config["iterations"])

    @property
    def seconds(self) -> float:
        """Seconds of all stages of all committed iterations."""
        return sum(sum(each.seconds.values()) for each in self.iterations)

    @property
    def overall(self) -> dict[str, Record]:
        """Change of the held-out rewards from π_0 to the last policy that was evaluated."""
        return self.held_out[-1].change if len(self.held_out) > 1 else {}

    @property
    def regenerated(self) -> int:
        """Prompts that were selected, over all iterations."""
        return sum(each.selected for each in self.iterations)

    @property
    def speedup(self) -> Record:
        """Time with every prompt regenerated divided by the time taken, over all iterations, and its bound."""
        rows = [each.summary for each in self.iterations if each.summary["seconds_saved"] is not None]
        if not rows or len(rows) < len(self.iterations):
            return {"speedup": None, "bound": None}
        taken = self.seconds
        saved = sum(row["seconds_saved"] for row in rows)
        orchestration = sum(row["seconds"]["rank and merge"] for row in rows)
        return {"speedup": (taken + saved) / taken, "bound": (taken + saved - orchestration) / (taken - orchestration)}


@dataclass(frozen=True)
class Version:
    """A prompt's pair at the end of an iteration."""

    iteration: int
    status: str
    reason: str | None
    texts: dict[str, str | None]
    rewards: dict[str, float | None]
    tokens: dict[str, int | None]


@dataclass(frozen=True)
class Example:
    """A prompt's history: the iterations that did not reuse its pair."""

    prompt_id: str
    prompt: str
    first: float
    last: float
    """Chosen rewards of its first and of its last pair."""
    versions: list[Version] = field(default_factory=list)

    @property
    def change(self) -> float:
        return self.last - self.first
