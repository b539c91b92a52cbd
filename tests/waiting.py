"""Waits for events instead of times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 400.0
"""Seconds after which an event counts as missing: many times what it takes on the slowest machine."""


def until(find: Callable[[], T]) -> T:
    """Call a function until its result is true, and return the result."""
    deadline = time.monotonic() + PATIENCE
    while not (found := find()):
        assert time.monotonic() < deadline, f"the event did not happen in {PATIENCE:.0f} s"
        time.sleep(0.05)
    return found
