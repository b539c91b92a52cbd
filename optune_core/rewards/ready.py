"""A reward as stages hand it to each other."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel

from optune_core.process.devices import Replicas
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward, Scorer
from optune_core.storage import ArtifactStore, Ref


class ReadyReward(BaseModel):
    """A reward whose model, if it uses one, is in the store."""

    reward: Annotated[Reward, REWARDS]
    model: Ref | None = None
    """The artifact that holds the model."""
    scoring: dict[str, Any]
    """As `Reward.scoring` returned it when the reward became ready."""

    @classmethod
    def of(cls, reward: Reward, model: Ref | None = None) -> ReadyReward:
        """Return the reward with its model.

        Raises:
            ConfigError: the reward cannot be used as it is configured.
        """
        reward.check()
        return cls(reward=reward, model=model, scoring=reward.scoring())

    def side_by_side(self) -> Replicas | None:
        """Return how many processes score side by side; None: one, which sees all devices."""
        return self.reward.side_by_side()

    def open(self, store: ArtifactStore) -> Scorer:
        """Fetch the model and make the reward ready to score."""
        folder = None if self.model is None else store.fetch(self.model, "model/*") / "model"
        return self.reward.open(folder)
