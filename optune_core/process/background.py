"""Commits in a thread beside the work that produces the next ones: few waiting calls, and no lost error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec

from optune_core.process import preemption

P = ParamSpec("P")

_IN_FLIGHT = 2
"""Calls that run or wait at a time. One of each bounds the memory, and hides a short stall of the store."""


class Background:
    """A thread that runs calls one after another.

    Leaving the block waits for all calls, also after an error: a process that is asked to end (SIGTERM) completes the
    commits that it started, within its grace.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._calls: deque[Future[Any]] = deque()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with preemption.deferred():
            self._thread.shutdown()
        if error is None:
            while self._calls:
                self._calls.popleft().result()

    def run(self, call: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Submit a call, and wait while too many are in flight. Raises the error of an earlier call, if one failed."""
        while self._calls and (len(self._calls) >= _IN_FLIGHT or self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(call, *args, **kwargs))
