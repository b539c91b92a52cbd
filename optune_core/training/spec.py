"""The section `training`, and what the training of a policy is asked for."""

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
"""A single pair of average length: fewer tokens at once save nothing."""


class Lora(Section):
    """An adapter that is trained instead of all weights, and merged at the end of an iteration."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: its product is multiplied by `alpha / r`."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter, as PEFT names them."""


class Training(Section):
    """The section `training`: the loss, the optimizer, and how steps are computed."""

    loss: Annotated[Loss, LOSSES]
    """What is minimised."""
    reference: Literal["previous", "initial"] = "previous"
    """π_t (the paper's) or π_0."""
    reference_logps: Literal["computed", "engine"] = "computed"
    """`engine`: for pairs that were sampled from the reference in this iteration, take the log-probabilities that the
    engine had them with (needs `generation.logps`), instead of computing them. Saves that share of the reference
    pass; costs exactness, since engine and trainer round differently: the first loss is no longer mean(R)·ln 2."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replay set an iteration. Not given by the paper."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs an optimizer step, over all devices (paper: 128); with `hypo` pairs and online samples together."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens that share a forward and backward pass on one device: pairs are packed until they are as many, without
    padding, and with each prompt once. Changes no result but roundings, so it may be changed in a run."""
    optimizer: Literal["rmsprop", "adamw_torch", "adamw_torch_fused"] = "rmsprop"
    """Paper: RMSprop. `adamw_torch_fused` is `adamw_torch` in one pass over the weights."""
    learning_rate: float = Field(default=5e-7, gt=0.0)
    """Paper: 5e-7."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Not given by the paper."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Paper: 0.1."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Norm to which larger gradients are scaled down."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast type of the forward pass; the master weights are float32 in either case."""
    min_reward_gap: float | None = None
    """Train on no pair whose reward margin is below it. Beyond the paper, whose Eq. 6 gives such a pair the weight ½,
    not 0. Default: train on all."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    checkpoint_every: Duration = "5m"
    """Most time that a kill may cost: a checkpoint (weights and optimizer, in float32) is committed at the first
    optimizer step after it, in the background. `0s`: after every step."""
    lora: Lora | None = None
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
        """Seconds of `checkpoint_every`."""
        return duration_seconds(self.checkpoint_every)


class Spec(BaseModel):
    """What the training of π_{t+1} is asked for."""

    training: Training
    seed: int
    iteration: int
    policy: Ref
    """π_t."""
    initial: Ref
    """π_0."""
    replay: Ref
    """D_t."""
    online: list[Ref] = []
    """Shards of responses of π_t, where the loss has a term on such (HyPO)."""
    memory_parts: int = Field(default=1, ge=1)
    """Divides the tokens that are computed at once, where memory does not suffice for `training.micro_batch_tokens`:
    the same policy but for roundings, so no part of its key."""

    @property
    def tokens_at_once(self) -> int:
        """Tokens that share a forward and backward pass."""
        return max(1, self.training.micro_batch_tokens // self.memory_parts)

    def smaller(self) -> Spec | None:
        """Return the same work in half the memory for activations; None where smaller passes would not help."""
        if self.tokens_at_once <= _FEWEST_TOKENS:
            return None
        return self.model_copy(update={"memory_parts": self.memory_parts * 2})

    @property
    def parents(self) -> dict[str, Ref]:
        """What the policy is made from."""
        found = {"policy": self.policy, "replay": self.replay}
        found |= {f"online/{number:05d}": shard for number, shard in enumerate(self.online)}
        if self.training.reference == "initial":
            found["reference"] = self.initial
        return found

    @property
    def work(self) -> Work:
        """The policy. (The reference log-probabilities are a function of its parents, so not one themselves.)"""
        params = self.training.identity() | {"seed": self.seed, "iteration": self.iteration}
        return Work("policy", VERSION, params, self.parents)
