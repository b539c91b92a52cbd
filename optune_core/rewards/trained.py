"""`trained`: a Bradley-Terry reward model (Eq. 1) that the flow `reward-model` trains once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optune_core.data.sources import Source
from optune_core.parts.names import FunctionPath
from optune_core.parts.section import Section
from optune_core.rewards.classifier import ModelReward
from optune_core.rewards.reward import ModelRole


class FilePairs(Section):
    """Preference data with columns prompt, chosen, rejected."""

    type: Literal["file"] = "file"
    source: Source
    """Where the rows are read from."""


class LabelledPairs(Section):
    """Pairs of π_0's own samples on the training prompts, labelled by a function."""

    type: Literal["labelled"] = "labelled"
    function: FunctionPath
    """Labels the samples; as `function` of a reward of type `function`."""
    max_pairs_per_prompt: int = Field(default=2, ge=1)
    """Most pairs that are made of one prompt's samples."""


PreferencePairs = Annotated[FilePairs | LabelledPairs, Field(discriminator="type")]


class TrainedReward(ModelReward):
    """A Bradley-Terry reward model that starts from the backbone `model`."""

    type: Literal["trained"] = "trained"
    pairs: PreferencePairs
    """What it is trained on."""
    held_out_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of prompts kept for the reported accuracy; split by prompt."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Highest learning rate of its schedule."""
    train_batch_size: int = Field(default=16, ge=1)
    """Pairs an optimizer step."""
    frozen_layers: int = Field(default=0, ge=0)
    """Lowest transformer layers (and the embeddings) that are not trained."""
    max_tokens: int = Field(default=1024, ge=8)
    """Pairs that are longer on a side (prompt and response), or longer than the backbone reads, are left out."""

    model_role: ClassVar[ModelRole | None] = "backbone"
    trained_first: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"trained from {self.model}"
