"""Stage `policy`: π_{t+1}, trained on D_t by `training.policy`."""

from __future__ import annotations

from optune_core.errors import OutOfMemory
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Work
from optune_core.training.spec import Spec


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage."""
    return [spec.work]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train the policy, in as many processes as the launcher started; the first process commits it.

    After SIGTERM, the reference pass ends at once, and training ends with a checkpoint.

    Raises:
        DataError: no prompt has a pair to train on.
        NonFiniteLoss: the loss or the gradient diverged.
        OutOfMemory: a device ran out of memory; `Spec.smaller` may need less.
        Preempted: the process got SIGTERM.
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


STAGE = Stage("policy", Spec, works, run, smaller=Spec.smaller, launcher="accelerate")
