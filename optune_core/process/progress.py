"""The callable through which a stage reports its progress, so that stages know neither terminals nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Function of (name of the step, number done, total number); a total of 0 means unknown."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class Together:
    """Progress of several processes that do parts of the same work, as one.

    A step is reported once all processes have reached it, with the sums over them: one bar has one total.
    """

    def __init__(self, progress: Progress, parts: int) -> None:
        self._progress = progress
        self._parts = parts
        self._latest: dict[int, tuple[str, int, int]] = {}

    def __call__(self, part: int, what: str, done: int, total: int) -> None:
        self._latest[part] = (what, done, total)
        reports = self._latest.values()
        if len(reports) == self._parts and all(report[0] == what for report in reports):
            self._progress(what, sum(report[1] for report in reports), sum(report[2] for report in reports))
