"""How a stage says how far it is: a callable, so that stages know neither terminals nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total): `total` 0 means unknown."""


def silent(what: str, done: int, total: int) -> None:
    """For callers that do not look."""


class Together:
    """The progress of several that do parts of the same work, as one. What is being done shows once all do it or have
    done it, with the sum of what they have done of it: one bar has one total."""

    def __init__(self, progress: Progress, parts: int) -> None:
        self._progress = progress
        self._parts = parts
        self._said: dict[int, tuple[str, int, int]] = {}

    def __call__(self, part: int, what: str, done: int, total: int) -> None:
        self._said[part] = (what, done, total)
        said = self._said.values()
        if len(said) == self._parts and all(each[0] == what for each in said):
            self._progress(what, sum(each[1] for each in said), sum(each[2] for each in said))
