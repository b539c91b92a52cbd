"""Commits beside the work that makes the next ones: one thread, a bounded number of waiting calls, no lost error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec

from optune_core.process import preemption

P = ParamSpec("P")

_IN_FLIGHT = 2
"""One that runs and one that waits: their memory is bounded, and a short stall of the store costs nothing."""


class Background:
    """Runs calls one after another in a thread of its own.

    However it is left, the calls it was given are over then: a process that is asked to end (SIGTERM) ends what it
    started to commit, inside its grace.
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
        """Have a call made, waiting for room if there is none. Raises what an earlier call raised."""
        while self._calls and (len(self._calls) >= _IN_FLIGHT or self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(call, *args, **kwargs))
