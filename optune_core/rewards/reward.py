"""Base of all rewards: sections of the configuration that score conversations."""

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
    """The prompt as text, for reward functions and messages."""
    messages: list[dict[str, str]]
    """The prompt as chat messages, `role` and `content` each."""
    response: str
    """The text of the response."""


class Scorer(Protocol):
    """An opened reward."""

    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        """Return one score a conversation, in order; a score that is not finite counts as a failure of the reward.

        Args:
            conversations: conversations to score.
            done: called with the number of conversations that are scored so far.
        """
        ...


ModelRole = Literal["policy", "reward", "backbone"]
"""Use of a model folder: a policy to train, a reward model, or the backbone that a reward model's training starts
from."""


class Reward(Part):
    """Base of all rewards. A reward describes what it needs, and all other code asks it instead of comparing names."""

    model_role: ClassVar[ModelRole | None] = None
    """The role in which its model enters the store; None: it uses no model."""
    trained_first: ClassVar[bool] = False
    """True: the flow `reward-model` trains its model before iteration 0."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the reward for people."""

    @property
    def family(self) -> str:
        """`model` or `function`. Rewards of one family score in the same processes."""
        return "function" if self.model_role is None else "model"

    def side_by_side(self) -> Replicas | None:
        """Return how many processes score in parallel; None: one process, which sees all devices."""
        return None

    def check(self) -> None:
        """Check that the reward can be used, before anything is computed.

        Raises:
            ConfigError: the reward cannot be used as it is configured.
        """

    def scoring(self) -> dict[str, Any]:
        """Return everything that determines a score except the content of the model, as JSON."""
        return self.identity()

    @abstractmethod
    def open(self, model: Path | None) -> Scorer:
        """Return a scorer.

        Args:
            model: model folder in the artifact; None for a reward without a model.
        """
