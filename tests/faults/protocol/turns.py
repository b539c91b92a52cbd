"""Programs in threads that make one storage operation at a time, in turns.

A schedule decides whose turn it is and how the operation fails; after every operation the store is checked.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st

from optune_core.errors import TransientError
from optune_core.storage import Manifest
from optune_core.storage.objects import Objects
from tests.waiting import PATIENCE

Fate = Literal["fine", "lost answer", "dies before", "dies after"]
Turn = tuple[int, Fate]


class Crash(BaseException):
    """The simulated death of a process."""


class Runner:
    """A program in a thread that stops before every storage operation until it is its turn."""

    def __init__(self, number: int, program: Callable[[Runner], None], objects: Objects, folder: Path) -> None:
        self.number = number
        self.objects = Stepped(objects, self)
        self.folder = folder
        self.got: list[Manifest] = []
        self.clock = 0.0
        self.done = False
        self.crashed = False
        self.error: BaseException | None = None
        self._program = program
        self._fate: Fate = "fine"
        self._turn = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.thread.start()
        self._wait()

    def step(self, fate: Fate) -> None:
        """Let the next operation happen, and the program go on to the one after it."""
        self._fate = fate
        self._turn.release()
        self._wait()

    def operate(self, operation: Callable[[], Any]) -> Any:
        if self.crashed:
            raise Crash
        self._stopped.release()
        self._turn.acquire()
        fate = self._fate
        if fate == "dies before":
            self.crashed = True
            raise Crash
        result = operation()
        if fate == "dies after":
            self.crashed = True
            raise Crash
        if fate == "lost answer":
            raise TransientError("no answer came")
        return result

    def _run(self) -> None:
        clocks[threading.get_ident()] = self
        try:
            self._program(self)
        except Crash:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=PATIENCE), "a runner neither ended nor asked for its turn"


class Stepped:
    """Objects as one runner sees them: each operation waits for its turn."""

    def __init__(self, objects: Objects, runner: Runner) -> None:
        self._objects = objects
        self._runner = runner
        self.url = objects.url

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._objects, name)
        if name == "local_folder":  # no operation
            return method
        return lambda *args: self._runner.operate(lambda: method(*args))


clocks: dict[int, Runner] = {}
"""The runner of each thread, whose clock the thread sees."""


def play(runners: list[Runner], schedule: list[Turn], look: Callable[[], None]) -> None:
    """Run all programs to their end: by the schedule as far as it goes, then in turn and without faults."""
    try:
        for runner in runners:
            runner.start()
        turns: Iterator[Turn] = itertools.chain(schedule, zip(itertools.count(), itertools.repeat("fine")))
        steps = 0
        while waiting := [runner for runner in runners if not runner.done]:
            number, fate = next(turns)
            waiting[number % len(waiting)].step(fate)
            look()
            steps += 1
            assert steps < 5000, "the runners keep each other from ending"
    finally:
        for runner in runners:
            while not runner.done:
                runner.step("dies before")
        for runner in runners:
            runner.thread.join()
            clocks.pop(runner.thread.ident or 0, None)


fates = st.sampled_from(["fine"] * 12 + ["lost answer"] * 2 + ["dies before", "dies after"])
schedules = st.lists(st.tuples(st.integers(0, 5), fates), max_size=60)
