"""What happens beside training: progress is reported, checkpoints are committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from optune_core.progress import Progress
from optune_core.storage import ArtifactStore, Work


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Optimizer steps as progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)


class CommitCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Every checkpoint before the last step becomes an artifact, so that any worker can go on from it."""

    def __init__(self, store: ArtifactStore, work_at: Callable[[int], Work]) -> None:
        self._store = store
        self._work_at = work_at

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step < state.max_steps:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self._store.commit(self._work_at(state.global_step), folder)
