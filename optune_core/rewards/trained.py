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
    """Pairs from a data set with the columns prompt, chosen and rejected."""

    type: Literal["file"] = "file"
    source: Source
    """The data set."""


class LabelledPairs(Section):
    """Pairs of π_0's own responses to the training prompts, labelled by a function."""

    type: Literal["labelled"] = "labelled"
    function: FunctionPath
    """Function (prompts, responses) → scores, as `package.module:function`; of a pair, the higher score is chosen."""
    max_pairs_per_prompt: int = Field(default=2, ge=1)
    """Largest number of pairs that are made of the responses to a prompt."""


PreferencePairs = Annotated[FilePairs | LabelledPairs, Field(discriminator="type")]


class TrainedReward(ModelReward):
    """A Bradley-Terry reward model that starts from the backbone `model`."""

    type: Literal["trained"] = "trained"
    pairs: PreferencePairs
    """Preference pairs that it is trained on."""
    held_out_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of the prompts whose pairs are not trained on, but used to measure the accuracy."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Highest learning rate of its schedule."""
    train_batch_size: int = Field(default=16, ge=1)
    """Pairs an optimizer step on one device."""
    frozen_layers: int = Field(default=0, ge=0)
    """Number of lowest transformer layers that are not trained; if it is not 0, the embeddings are not trained
    either."""
    max_tokens: int = Field(default=1024, ge=8)
    """Largest number of tokens in a prompt and a response together. Pairs with a longer side, or one that is longer
    than the backbone reads, are left out."""

    model_role: ClassVar[ModelRole | None] = "backbone"
    trained_first: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"trained from {self.model}"
