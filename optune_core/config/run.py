"""The configuration of a run, in the paper's terms: policy, reference, chosen, rejected, rho, beta1, beta2.

Each section is defined beside the code that reads it. Where the paper gives a value, the field's description quotes it;
the other defaults are common practice.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from optune_core.data.model_folder import Model
from optune_core.data.prompts import Prompts
from optune_core.generation.section import Generation
from optune_core.health import Health
from optune_core.parts.names import Name
from optune_core.parts.section import Section
from optune_core.rewards.function import FunctionReward
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward
from optune_core.selection.optune import Optune
from optune_core.selection.registry import SELECTORS
from optune_core.selection.selector import Selector
from optune_core.training.spec import Training


class HeldOut(Section):
    """The section `held_out`: how policies are scored on the prompts that `prompts.held_out` sets aside."""

    samples: int = Field(default=1, ge=1)
    """Responses a held-out prompt, sampled as in training."""
    gold: FunctionReward | None = None
    """A second reward, which is reported and never optimised. Default: none."""


class OptuneConfig(Section):
    """A complete configuration: everything that determines a run's result, but not where it runs (store, pools)."""

    name: Name
    """Name of the run, and of its folder in the store, unless `--run` gives another."""
    seed: int = Field(default=0, ge=0)
    """Decides the draw of the prompts, the sampling of each response, the order of training, and ties in rankings."""
    iterations: int = Field(default=3, ge=1)
    """T, the number of iterations (paper: 3). It is a target, so it may be changed in a run."""
    policy: Model
    """π_0, the model that is trained."""
    prompts: Prompts
    selection: Annotated[Selector, SELECTORS] = Field(default_factory=Optune)
    """Selector of the prompts that are regenerated from iteration 1 on."""
    generation: Generation = Field(default_factory=Generation)
    reward: Annotated[Reward, REWARDS]
    """Reward that scores responses, and that training therefore optimises."""
    training: Training
    held_out: HeldOut = Field(default_factory=HeldOut)
    health: Health = Field(default_factory=Health)

    HOW: ClassVar[tuple[str, ...]] = ("iterations", "health")

    @model_validator(mode="after")
    def _engine_logps_are_asked_for(self) -> OptuneConfig:
        if self.training.reference_logps == "engine" and not self.generation.logps:
            raise ValueError(
                "training.reference_logps='engine' uses the log-probabilities of the engine, but "
                "generation.logps=false does not ask the engine for them: set generation.logps=true"
            )
        return self

    @model_validator(mode="after")
    def _online_samples_are_beside_fixed_pairs(self) -> OptuneConfig:
        loss = self.training.loss
        if loss.online_share is None:
            return self
        if self.selection.regenerates:
            raise ValueError(
                f"training.loss.type={loss.type!r} trains on a fixed preference set, but selection.type="
                f"{self.selection.type!r} regenerates pairs: set selection.type=none and prompts.pairs"
            )
        if self.generation.ahead:
            raise ValueError(
                f"training.loss.type={loss.type!r} needs samples of the policy that is trained, but "
                "generation.ahead=true takes them from the policy before: leave generation.ahead out"
            )
        return self

    @model_validator(mode="after")
    def _offline_needs_pairs(self) -> OptuneConfig:
        if not self.selection.regenerates and self.prompts.pairs is None:
            raise ValueError(
                f"selection.type={self.selection.type!r} regenerates no prompt, so prompts.pairs must name the columns "
                "of a fixed preference pair: add `pairs: {chosen: chosen, rejected: rejected}` to prompts"
            )
        if self.prompts.pairs is not None and self.selection.regenerates:
            raise ValueError(
                f"prompts.pairs is only read with selection.type='none', not {self.selection.type!r}: "
                "leave one of them out"
            )
        return self
