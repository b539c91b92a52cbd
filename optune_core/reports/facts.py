"""What a report says of a run, in numbers: read by `analysis`, judged by `warnings`, drawn by `figures`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optune_core.statistics import Values

Row = dict[str, Any]


@dataclass(frozen=True)
class Responses:
    """Responses of one policy, counted."""

    responses: int
    tokens: int
    truncated: int
    """Cut at `generation.max_tokens`."""
    distinct: int | None
    """Different ones, counted shard by shard; None where the shards were made before this was noted."""

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
    """Iteration in which pairs were made → how many of them."""
    weights: Values
    """R of Eq. 6, of the pairs that are trained on; none under a loss without weights."""

    @property
    def gaps(self) -> Values:
        return self.chosen_rewards - self.rejected_rewards

    @property
    def effective_share(self) -> float | None:
        """(ΣR)²/ΣR² as a share of the pairs. With no chosen reward below its rejected one it is at least 8/9."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares / len(self.weights) if squares else None


@dataclass(frozen=True)
class IterationFacts:
    """One committed iteration."""

    summary: Row
    """The row of `summarise`."""
    metrics: Row
    """Of the stage `replay`."""
    selected: int
    """Prompts that were to be regenerated."""
    fresh: Responses | None
    """To them; None where nothing was generated (offline DPO)."""
    pairs: PairFacts
    correlations: dict[str, float | None]
    """Pearson's r of reward and length: over `chosen`, over `rejected`, over `both`."""
    gains: tuple[float, float] | None
    """Reward gained in the lower and in the upper half (`half_gains`); None where no prompt with a pair
    was regenerated."""
    log: list[Row]
    """train_log.jsonl: the metrics of each optimizer step."""
    log_ratios: dict[str, float | None]
    """Mean log π_θ(y|x)/π_ref(y|x) over the last quarter of the steps, in nats a response: `chosen`, `rejected`."""
    starts_at_reference: bool
    """Whether the policy begins this iteration as its own reference, so that the first loss is mean(R)·ln 2."""
    code_version: str
    committed_at: float
    """When its policy was committed: Unix time in seconds, by the clock of the machine that trained."""

    @property
    def iteration(self) -> int:
        return int(self.summary["iteration"])

    @property
    def seconds(self) -> dict[str, float]:
        seconds: dict[str, float] = self.summary["seconds"]
        return seconds

    @property
    def kl_estimate(self) -> float | None:
        """Minus the mean of the two log-ratios: KL(π_ref ‖ π_θ), were the pairs fresh unselected samples of π_ref."""
        chosen, rejected = self.log_ratios["chosen"], self.log_ratios["rejected"]
        return None if chosen is None or rejected is None else 0.0 - (chosen + rejected) / 2


@dataclass(frozen=True)
class HeldOut:
    """π_t on the held-out prompts."""

    iteration: int
    """t."""
    change: dict[str, Row]
    """`proxy`, `gold` → `paired_difference` from π_0 to π_t; only rewards that any prompt has of both."""
    answers: Responses | None


@dataclass(frozen=True)
class RunFacts:
    """Everything of a run that its page says, but the examples."""

    run: str
    config: Row
    iterations: list[IterationFacts]
    held_out: list[HeldOut]
    """From π_0 on; empty without held-out prompts."""
    evaluations: list[Row]
    """Evaluations of all kinds, as the ledger records them."""
    reward_model: Row | None
    """Metrics of the reward model that the flow trained; None for any other reward."""
    state: str
    """How the last start stands, in words; empty where that is not known."""
    store: str

    @property
    def wanted(self) -> int:
        return int(self.config["iterations"])

    @property
    def seconds(self) -> float:
        """Of all stages of all committed iterations."""
        return sum(sum(each.seconds.values()) for each in self.iterations)

    @property
    def overall(self) -> dict[str, Row]:
        """Held-out change from π_0 to the last policy that was evaluated."""
        return self.held_out[-1].change if len(self.held_out) > 1 else {}

    @property
    def regenerated(self) -> int:
        """Prompts that were selected, over all iterations."""
        return sum(each.selected for each in self.iterations)

    @property
    def speedup(self) -> Row:
        """Time with every prompt regenerated by the time that was taken, over the whole run, and its bound."""
        rows = [each.summary for each in self.iterations if each.summary["seconds_saved"] is not None]
        if not rows or len(rows) < len(self.iterations):
            return {"speedup": None, "bound": None}
        taken = self.seconds
        saved = sum(row["seconds_saved"] for row in rows)
        orchestration = sum(row["seconds"]["rank and merge"] for row in rows)
        return {"speedup": (taken + saved) / taken, "bound": (taken + saved - orchestration) / (taken - orchestration)}


@dataclass(frozen=True)
class Version:
    """A prompt's pair as an iteration left it."""

    iteration: int
    status: str
    reason: str | None
    texts: dict[str, str | None]
    rewards: dict[str, float | None]
    tokens: dict[str, int | None]


@dataclass(frozen=True)
class Example:
    """A prompt's history: only iterations that changed its pair, or tried to."""

    prompt_id: str
    prompt: str
    first: float
    last: float
    """Chosen rewards, of its first and of its last pair."""
    versions: list[Version] = field(default_factory=list)

    @property
    def change(self) -> float:
        return self.last - self.first
