"""The life of a stage's child processes: they start together, are followed together, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import psutil

from optune_core.errors import Preempted
from optune_core.process import die_with_parent, preemption
from optune_core.process.progress import Progress, Together
from optune_core.secrets import redact

no_child = Event()
"""Set while no stage of this process has a child."""
no_child.set()

_KEPT_LINES = 40

Log = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    """What a child runs."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    """On top of this process's."""
    launches: bool = False
    """It starts the processes that work, and may end without telling those."""


@dataclass(frozen=True)
class Failure:
    """How a child ended that did not do its work."""

    status: int
    error: dict[str, str] | None
    """`type` and `message` as it said them; None if it said nothing."""
    tail: list[str]
    """Its last lines on standard error."""


def run_children(
    commands: Iterable[Command], progress: Progress, log: Log, committed: Callable[[], None]
) -> Failure | None:
    """Run all commands side by side, until all have ended.

    If one fails, the others are told to end (SIGTERM), given their grace to save what they have, and then killed. So
    they are when this call is left by an exception, such as a signal's; a second one cuts their grace short.

    Args:
        progress: told the sum over the children.
        log: told what they print on standard error, line by line, without secrets, and the number of the child where
            there are several.
        committed: called for every artifact that one of them commits.

    Returns:
        None if all did their work, else the first failure that is a reason for the others.
    """
    commands = list(commands)
    group = _Group(Together(progress, len(commands)), log, committed)
    no_child.clear()
    try:
        for number, command in enumerate(commands):
            group.start(number, command, f"[{number}] " if len(commands) > 1 else "")
        failures = group.follow()
    except BaseException:
        group.end()
        raise
    finally:
        no_child.set()
    if not failures:
        return None
    first, *others = failures
    if first.error is None or _is_reason(first.error):
        return first
    return next((failure for failure in others if _is_reason(failure.error)), first)


def _is_reason(error: dict[str, str] | None) -> bool:
    """Whether it tells why a stage failed: of processes that work together, others are only told to end after it."""
    return error is not None and error["type"] != Preempted.__name__


class _Child:
    def __init__(self, number: int, command: Command) -> None:
        self.number = number
        self.command = command
        self.process = subprocess.Popen(
            command.arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | command.environment | {die_with_parent.PARENT: str(os.getpid())},
        )
        self.last: dict[str, Any] = {}
        """Its last word: that it is done, or why it failed."""
        self.tail: deque[str] = deque(maxlen=_KEPT_LINES)

    def forward(self, log: Log, name: str) -> None:
        """Read its standard error to the end."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text := redact(line.rstrip()):
                self.tail.append(text)
                log(name + text)

    def failure(self) -> Failure | None:
        """How it ended, if it did not do its work."""
        status = self.process.wait()
        return None if self.last.get("done") else Failure(status, self.last.get("error"), list(self.tail))

    def workers(self) -> list[psutil.Process]:
        """The processes that work: the child, or what it launched."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return process.children() if self.command.launches else [process]
        return []


class _Group:
    """Children whose lines come together in one queue, so that one thread follows all and can be interrupted."""

    def __init__(self, progress: Together, log: Log, committed: Callable[[], None]) -> None:
        self._progress = progress
        self._log = log
        self._committed = committed
        self._running: list[_Child] = []
        self._lines: SimpleQueue[tuple[_Child, str | None]] = SimpleQueue()
        self._deadline: float | None = None
        """When those that still run are killed; None: they were not told to end."""

    def start(self, number: int, command: Command, name: str) -> None:
        """A child lives no longer than the thread that starts it (`bound`), so that has to be the one that follows."""
        child = _Child(number, command)
        self._running.append(child)
        errors = Thread(target=child.forward, args=(self._log, name), daemon=True)
        errors.start()
        Thread(target=self._read, args=(child, errors), daemon=True).start()

    def follow(self) -> list[Failure]:
        """Until all have ended. Returns the failures in their order."""
        failures = []
        while self._running:
            patience = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            try:
                child, line = self._lines.get(timeout=patience)
            except Empty:
                self._kill()
                break
            if line is not None:
                self._hear(child, line)
                continue
            self._running.remove(child)
            if failure := child.failure():
                failures.append(failure)
                self._tell()
        return failures

    def end(self) -> None:
        """Tell all to end, and see that they do within their grace."""
        try:
            self._tell()
            self.follow()
        except BaseException:  # this process is told again
            self._kill()

    def _tell(self) -> None:
        if self._deadline is not None:
            return
        for child in self._running:
            for process in child.workers():
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
        self._deadline = (
            time.monotonic() + preemption.GRACE_SECONDS + 1
        )  # last: who is interrupted here tells all again

    def _kill(self) -> None:
        for child in self._running:
            child.process.kill()
        for child in self._running:
            child.process.wait()
        self._running.clear()

    def _read(self, child: _Child, errors: Thread) -> None:
        """In a thread of its own: a child would wait at a full pipe."""
        assert child.process.stdout is not None
        for line in child.process.stdout:
            self._lines.put((child, line))
        errors.join(timeout=5)
        self._lines.put((child, None))

    def _hear(self, child: _Child, line: str) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            self._log(redact(line.rstrip()))
            return
        if "progress" in message:
            if self._deadline is None:
                self._progress(child.number, *message["progress"])
        elif "committed" in message:
            self._committed()
        elif not _is_reason(child.last.get("error")):  # a launcher's processes all speak here
            child.last = message
