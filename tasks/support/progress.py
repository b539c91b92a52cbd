"""Progress of a stage: a bar on a terminal, otherwise log lines, and a progress artifact in Prefect's UI."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from tqdm import tqdm

from optune_core.process.progress import Progress
from tasks.support.ui import only_shown

_UI_SECONDS = 5.0
_LOG_SECONDS = 20.0


@contextmanager
def reporting(stage: str) -> Iterator[Progress]:
    """Yield a callable through which a stage reports its progress."""
    shown = _Shown(stage)
    try:
        yield shown
    finally:
        shown.close()


class _Shown:
    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._what = ""
        self._bar: tqdm[None] | None = None
        self._artifact: UUID | None = None
        with only_shown():
            self._artifact = create_progress_artifact(progress=0.0, description=f"{stage}: waiting")
        self._next_ui = self._next_log = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what = what
            self._next_ui = self._next_log = now
            self._close_bar()
            if sys.stderr.isatty():
                self._bar = tqdm(desc=f"{what:>16}", total=total or None, dynamic_ncols=True, leave=bool(total))
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            get_run_logger().info("%s%s", what, f" {done}/{total}" if total else "")
        if now >= self._next_ui:
            self._next_ui = now + _UI_SECONDS
            percent = 100.0 * done / total if total else 0.0
            self._show(percent, what)

    def close(self) -> None:
        self._close_bar()
        self._show(100.0, "ended")

    def _show(self, percent: float, what: str) -> None:
        if self._artifact is not None:
            with only_shown():
                update_progress_artifact(self._artifact, progress=percent, description=f"{self._stage}: {what}")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
