"""How a stage says how far it is: a callable, so that stages know neither terminals nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total): `total` 0 means unknown."""


def silent(what: str, done: int, total: int) -> None:
    """For callers that do not look."""
