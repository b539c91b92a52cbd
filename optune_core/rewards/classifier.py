"""`classifier`: a reward model that is a sequence classifier with one logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from optune_core.data.model_folder import Model
from optune_core.process.devices import Replicas
from optune_core.rewards.reward import ModelRole, Reward, Scorer


class ModelReward(Model, Reward):
    """Base of rewards that are sequence classifiers with their own tokenizer and chat template."""

    batch_size: int = Field(default=16, ge=1)
    """Conversations a forward pass."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the model's weights and activations."""
    replicas: int | None = Field(default=None, ge=1)
    """Number of reward models that divide the shards between them, each in a process of its own on a device of its own.
    Default: as many as the machine has devices, at least one. It changes no result, so it may be changed in a run."""

    HOW: ClassVar[tuple[str, ...]] = ("replicas",)

    @property
    def label(self) -> str:
        return f"classifier {self.model}"

    def side_by_side(self) -> Replicas:
        return Replicas("reward", self.replicas, devices=1)

    def scoring(self) -> dict[str, Any]:
        return {"type": "classifier", "batch_size": self.batch_size, "dtype": self.dtype}

    def open(self, model: Path | None) -> Scorer:
        from optune_core.rewards.classifier_scorer import ClassifierScorer

        assert model is not None, "a reward with a model is ready only with it"
        return ClassifierScorer(model, batch_size=self.batch_size, dtype=self.dtype)


class ClassifierReward(ModelReward):
    """A reward model that is an `AutoModelForSequenceClassification` with one logit."""

    type: Literal["classifier"] = "classifier"

    model_role: ClassVar[ModelRole | None] = "reward"
