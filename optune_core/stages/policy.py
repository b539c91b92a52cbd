"""Stage `policy`: π_{t+1}, trained on D_t. What its process does is in `training.policy`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from optune_core.config.schema import Training
from optune_core.errors import OutOfMemory
from optune_core.process.progress import Progress
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 5
_FEWEST_TOKENS = 256
"""A single pair of average length: with less at once nothing is gained."""


class Spec(BaseModel):
    training: Training
    seed: int
    iteration: int
    policy: dict[str, str]
    """Reference to π_t."""
    initial: dict[str, str]
    """Reference to π_0."""
    replay: dict[str, str]
    """Reference to D_t."""
    online: list[dict[str, str]] = []
    """References to shards of responses of π_t, where the loss has a term on such (HyPO)."""
    memory_parts: int = Field(default=1, ge=1)
    """Divides the tokens that are computed at once, where memory does not suffice for `training.micro_batch_tokens`:
    the same policy but for roundings, so no part of its key."""

    @property
    def tokens_at_once(self) -> int:
        """Tokens that share a forward and backward pass."""
        return max(1, self.training.micro_batch_tokens // self.memory_parts)


def smaller(spec: Spec) -> Spec | None:
    """The same work in half the memory for activations; None: few pairs are so short that it would help."""
    if spec.tokens_at_once <= _FEWEST_TOKENS:
        return None
    return spec.model_copy(update={"memory_parts": spec.memory_parts * 2})


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """The policy. (The reference log-probabilities are a function of its parents, so not one themselves.)"""
    params = spec.training.model_dump(mode="json", exclude=set(Training.HOW))
    params |= {"seed": spec.seed, "iteration": spec.iteration}
    return [Work("policy", VERSION, params, parents(spec))]


def parents(spec: Spec) -> dict[str, Ref]:
    """What the policy is made from."""
    found = {"policy": Ref.from_json(spec.policy), "replay": Ref.from_json(spec.replay)}
    found |= {f"online/{number:05d}": Ref.from_json(shard) for number, shard in enumerate(spec.online)}
    if spec.training.reference == "initial":
        found["reference"] = Ref.from_json(spec.initial)
    return found


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train, in as many processes as the launcher started; the first one commits.

    Asked to end by SIGTERM, it leaves the reference pass at once and training with a checkpoint.

    Raises:
        DataError: no prompt has a pair to train on.
        NonFiniteLoss: the loss or the gradient diverged.
        OutOfMemory: a device's memory does not suffice; `smaller` may know a way.
        Preempted: the process was asked to end.
    """
    import torch

    from optune_core.training.policy import train

    try:
        train(store, spec, progress)
    except torch.OutOfMemoryError as error:
        tokens, at_once = spec.training.micro_batch_tokens, spec.tokens_at_once
        raise OutOfMemory(
            f"the device has too little memory to train with training.micro_batch_tokens={tokens}"
            + (f", {at_once} tokens computed at once" if at_once < tokens else "")
            + f" ({str(error).splitlines()[0]}). Lower training.micro_batch_tokens, set "
            "training.gradient_checkpointing, or train an adapter (training.lora)"
        ) from error
