"""What happens beside training: progress is reported, and checkpoints are due by the clock or when told to end."""

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
    """Where written checkpoints go; see `recovery.Checkpoints`."""

    def commit(self, step: int, folder: Path) -> None: ...

    def wait(self) -> None: ...


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Optimizer steps as progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)


class SaveByTheClock(TrainerCallback):  # type: ignore[misc]
    """Saves at the end of an optimizer step when it is time, or when the process was asked to end, and then leaves.

    Nothing is saved after the last step: the policy itself comes next, and is no more to write.

    Args:
        every: seconds from one checkpoint, or the start, to the next; 0 saves after every step.
    """

    def __init__(self, every: float, checkpoints: Committer) -> None:
        self._every = every
        self._checkpoints = checkpoints
        self._last = time.monotonic()
        self._leave = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _agreed(preemption.requested()):
            preemption.leave()  # there is nothing yet to save
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
            PartialState().wait_for_everyone()  # one that left early would have its launcher end the others
            preemption.leave()
        self._last = time.monotonic()


def _agreed(wish: int) -> int:
    """The strongest wish of any process: clocks and signals differ, collective saving must not."""
    state = PartialState()
    return wish if state.num_processes == 1 else int(gather(torch.tensor([wish], device=state.device)).max())
