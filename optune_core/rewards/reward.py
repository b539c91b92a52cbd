"""What a reward is: a section of the configuration that scores conversations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from optune_core.parts.registry import Part
from optune_core.process.devices import Replicas


@dataclass(frozen=True)
class Conversation:
    """A response with the messages that it answers."""

    prompt: str
    messages: list[dict[str, str]]
    response: str


class Scorer(Protocol):
    """A reward that is ready to score."""

    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        """Return one score each, in order; not finite where the reward failed.

        Args:
            done: called with the number of conversations that are scored.
        """
        ...


ModelRole = Literal["policy", "reward", "backbone"]
"""How a model folder is used: a policy to train, a reward model, or the start of a reward model's training."""


class Reward(Part):
    """Base of all rewards. What a reward needs is said here, and everybody else asks it."""

    model_role: ClassVar[ModelRole | None] = None
    """The role in which its model enters the store; None: it uses none."""
    trained_first: ClassVar[bool] = False
    """Whether the flow `reward-model` trains its model before iteration 0."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The reward for people."""

    @property
    def family(self) -> str:
        """Rewards of one family are scored in the same processes: `model`, or `function`."""
        return "function" if self.model_role is None else "model"

    def side_by_side(self) -> Replicas | None:
        """Return how many processes score side by side; None: one, which sees all devices."""
        return None

    def check(self) -> None:
        """Find what is wrong before work is spent.

        Raises:
            ConfigError: the reward cannot be used as it is configured.
        """

    def scoring(self) -> dict[str, Any]:
        """Return what determines a score besides the content of the model, as JSON."""
        return self.identity()

    @abstractmethod
    def open(self, model: Path | None) -> Scorer:
        """Make the reward ready.

        Args:
            model: model folder in the artifact; None for a reward without a model.
        """
