"""A reward together with its model in the store."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel

from optune_core.process.devices import Replicas
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward, Scorer
from optune_core.storage import ArtifactStore, Ref


class ReadyReward(BaseModel):
    """A reward that can score: its model, if it uses one, is in the store."""

    reward: Annotated[Reward, REWARDS]
    model: Ref | None = None
    """The artifact that holds the model; None: the reward uses none."""
    scoring: dict[str, Any]
    """Result of `Reward.scoring` when the reward became ready; it is part of the keys of scores."""

    @classmethod
    def of(cls, reward: Reward, model: Ref | None = None) -> ReadyReward:
        """Check a reward and return it with its model.

        Raises:
            ConfigError: the reward cannot be used as it is configured.
        """
        reward.check()
        return cls(reward=reward, model=model, scoring=reward.scoring())

    def side_by_side(self) -> Replicas | None:
        """Return how many processes score in parallel; None: one process, which sees all devices."""
        return self.reward.side_by_side()

    def open(self, store: ArtifactStore) -> Scorer:
        """Fetch the model, if there is one, and return a scorer."""
        folder = None if self.model is None else store.fetch(self.model, "model/*") / "model"
        return self.reward.open(folder)
