"""The section `training`, and the spec of the stage `policy`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from optune_core.losses.loss import Loss
from optune_core.losses.registry import LOSSES
from optune_core.parts.duration import Duration, duration_seconds
from optune_core.parts.section import Section
from optune_core.storage import Ref, Work

VERSION = 6
_FEWEST_TOKENS = 256
"""Tokens at once below which memory is not saved, since they are about one pair."""


class Lora(Section):
    """A LoRA adapter, which is trained instead of all weights and merged at the end of an iteration."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapter, which is multiplied by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, as peft takes them."""


class Training(Section):
    """The section `training`: the loss, the optimizer, and how steps are computed."""

    loss: Annotated[Loss, LOSSES]
    """The loss, with its own parameters."""
    reference: Literal["previous", "initial"] = "previous"
    """Reference policy: `previous` is π_t, the paper's; `initial` is π_0."""
    reference_logps: Literal["computed", "engine"] = "computed"
    """`computed`: the reference pass computes all log-probabilities. `engine`: for pairs that were sampled from the
    reference in this iteration, the log-probabilities are those of the engine (needs `generation.logps`), which saves
    their share of the reference pass. It is less exact, since engine and trainer round differently: the loss of the
    first step is no longer mean(R)·ln 2."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replay set in an iteration. The paper gives no value."""
    batch_size: int = Field(default=128, ge=1)
    """Rows an optimizer step, over all devices (paper: 128). A row is a pair or, with `hypo`, an online sample."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Largest number of tokens in a forward and backward pass on one device. Pairs are packed up to it without padding,
    and with each prompt once. It changes results only by rounding, so it may be changed in a run."""
    optimizer: Literal["rmsprop", "adamw_torch", "adamw_torch_fused"] = "rmsprop"
    """Optimizer (paper: RMSprop). `adamw_torch_fused` is `adamw_torch` in one pass over the weights."""
    learning_rate: float = Field(default=5e-7, gt=0.0)
    """Largest learning rate of the schedule (paper: 5e-7)."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Schedule of the learning rate after the warm-up. The paper names none."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from 0 (paper: 0.1)."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Norm to which gradients are clipped."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast type of the forward pass. Weights and optimizer are in float32 in either case."""
    min_reward_gap: float | None = None
    """Smallest reward margin of a pair that is trained on. Default: all pairs are trained on, as in the paper, whose
    Eq. 6 gives pairs with a small margin a weight of about ½, not 0."""
    gradient_checkpointing: bool = False
    """True: activations are computed again in the backward pass, which takes longer and needs less memory."""
    checkpoint_every: Duration = "5m"
    """Time between checkpoints, and so the most work that a kill may cost. A checkpoint (weights and optimizer, in
    float32) is committed in the background at the first optimizer step after this time. `0s`: after every step."""
    lora: Lora | None = None
    """Adapter that is trained instead of all weights. Default: all weights are trained."""
    accelerate_config: str | None = None
    """File for `accelerate launch --config_file` (DDP, FSDP). Default: one process a device."""

    HOW: ClassVar[tuple[str, ...]] = (
        "micro_batch_tokens",
        "gradient_checkpointing",
        "checkpoint_every",
        "accelerate_config",
    )

    @property
    def checkpoint_seconds(self) -> int:
        """`checkpoint_every` in seconds."""
        return duration_seconds(self.checkpoint_every)


class Spec(BaseModel):
    """Spec of the stage `policy`: the training of π_{t+1}."""

    training: Training
    seed: int
    """The run's seed."""
    iteration: int
    """t."""
    policy: Ref
    """π_t."""
    initial: Ref
    """π_0."""
    replay: Ref
    """D_t."""
    online: list[Ref] = []
    """Shards of online responses of π_t; empty if the loss has no term on them."""
    memory_parts: int = Field(default=1, ge=1)
    """Divisor of `training.micro_batch_tokens`, raised when a device runs out of memory. It changes the policy only by
    rounding, so it is not part of the key."""

    @property
    def tokens_at_once(self) -> int:
        """Largest number of tokens in a forward and backward pass on one device."""
        return max(1, self.training.micro_batch_tokens // self.memory_parts)

    def smaller(self) -> Spec | None:
        """Return the spec of the same work with half the tokens at once; None: smaller passes would save no memory."""
        if self.tokens_at_once <= _FEWEST_TOKENS:
            return None
        return self.model_copy(update={"memory_parts": self.memory_parts * 2})

    @property
    def parents(self) -> dict[str, Ref]:
        """References to the artifacts that determine the policy, by role."""
        found = {"policy": self.policy, "replay": self.replay}
        found |= {f"online/{number:05d}": shard for number, shard in enumerate(self.online)}
        if self.training.reference == "initial":
            found["reference"] = self.initial
        return found

    @property
    def work(self) -> Work:
        """The work whose artifact is the policy. Reference log-probabilities follow from its parents, so are none of
        them."""
        params = self.training.identity() | {"seed": self.seed, "iteration": self.iteration}
        return Work("policy", VERSION, params, self.parents)
