"""Callbacks of the trainer: report the progress, and save checkpoints by the clock and before an early end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from optune_core.process import preemption
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress

_GO_ON, _SAVE, _SAVE_AND_LEAVE = range(3)


class Committer(Protocol):
    """Interface to commit written checkpoints; `recovery.Checkpoints` implements it."""

    def commit(self, step: int, folder: Path) -> None: ...

    def wait(self) -> None: ...


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Reports optimizer steps as progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)


class SaveByTheClock(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint after an optimizer step when it is due. If the process was asked to end, saves and ends it.

    No checkpoint is saved after the last step: the policy itself is written next, and is not larger.

    Args:
        every: seconds from one checkpoint, or the start, to the next; 0 saves after every step.
        checkpoints: commits the written checkpoints.
    """

    def __init__(self, every: float, checkpoints: Committer) -> None:
        self._every = every
        self._checkpoints = checkpoints
        self._last = time.monotonic()
        self._leave = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _agreed(preemption.requested()):
            preemption.leave()  # no step was made, so there is nothing to save
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reach("policy.step")
        if state.global_step >= state.max_steps:
            return
        wish = _SAVE if time.monotonic() - self._last >= self._every else _GO_ON
        decision = _agreed(_SAVE_AND_LEAVE if preemption.requested() else wish)
        if decision != _GO_ON:
            control.should_save = True
        self._leave = decision == _SAVE_AND_LEAVE

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            reach("checkpoint.written")
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self._checkpoints.commit(state.global_step, folder)
        if self._leave:
            self._checkpoints.wait()
            PartialState().wait_for_everyone()  # if a process ended earlier, its launcher would end the others
            preemption.leave()
        self._last = time.monotonic()


def _agreed(wish: int) -> int:
    """Return the strongest wish of any process: clocks and signals differ, but all processes must save together."""
    state = PartialState()
    return wish if state.num_processes == 1 else int(gather(torch.tensor([wish], device=state.device)).max())
