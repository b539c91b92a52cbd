"""Child processes of a stage: started together, followed together, and ended together."""

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
"""Event that is set while no stage of this process has a child process."""
no_child.set()

_KEPT_LINES = 40

Log = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    """Command line and environment of a child process."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    """Variables that are set in addition to this process's environment."""
    launches: bool = False
    """True: the command is a launcher: its own children do the work, and it may end without ending them."""


@dataclass(frozen=True)
class Failure:
    """End of a child process that did not complete its work."""

    status: int
    """Exit status as of `subprocess.Popen.returncode`; -N after signal N."""
    error: dict[str, str] | None
    """Error that the child reported, as `type` and `message`; None if it reported none."""
    tail: list[str]
    """Last lines that the child wrote to standard error."""


def run_children(
    commands: Iterable[Command], progress: Progress, log: Log, committed: Callable[[], None]
) -> Failure | None:
    """Run all commands side by side, until all have ended.

    If one fails, the others are asked to end (SIGTERM), get their grace to save their work, and are then killed. The
    same happens when an exception, such as a signal's, interrupts this call; a second exception ends the grace.

    Args:
        commands: the commands; with several, the lines of each are logged with its number.
        progress: called with the sum over the children.
        log: called with every line that they write to standard error, without secrets.
        committed: called for every artifact that one of them commits.

    Returns:
        None if all completed their work, otherwise the first failure that can be the cause of the others.
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
    if first.error is None or _is_cause(first.error):
        return first
    return next((failure for failure in others if _is_cause(failure.error)), first)


def _is_cause(error: dict[str, str] | None) -> bool:
    """Return whether an error explains why a stage failed. `Preempted`, which others get after a failure, does not."""
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
        """Last message of the child: that its work is done, or its error."""
        self.tail: deque[str] = deque(maxlen=_KEPT_LINES)

    def forward(self, log: Log, name: str) -> None:
        """Log the child's standard error, line by line, until it is closed."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text := redact(line.rstrip()):
                self.tail.append(text)
                log(name + text)

    def failure(self) -> Failure | None:
        """Wait for the child to end. Returns its failure, or None if it completed its work."""
        status = self.process.wait()
        return None if self.last.get("done") else Failure(status, self.last.get("error"), list(self.tail))

    def workers(self) -> list[psutil.Process]:
        """Return the processes that do the work: the child itself, or the processes that it launched."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return process.children() if self.command.launches else [process]
        return []


class _Group:
    """Children whose lines arrive in one queue, so that one thread follows all of them and can be interrupted."""

    def __init__(self, progress: Together, log: Log, committed: Callable[[], None]) -> None:
        self._progress = progress
        self._log = log
        self._committed = committed
        self._running: list[_Child] = []
        self._lines: SimpleQueue[tuple[_Child, str | None]] = SimpleQueue()
        self._deadline: float | None = None
        """Time by the monotonic clock at which remaining children are killed; None until they are asked to end."""

    def start(self, number: int, command: Command, name: str) -> None:
        """Start a child. To be called in the thread that calls `follow`: a child dies with the thread that started it
        (`die_with_parent`)."""
        child = _Child(number, command)
        self._running.append(child)
        errors = Thread(target=child.forward, args=(self._log, name), daemon=True)
        errors.start()
        Thread(target=self._read, args=(child, errors), daemon=True).start()

    def follow(self) -> list[Failure]:
        """Handle the children's messages until all have ended. Returns the failures in the order of their ends."""
        failures = []
        while self._running:
            timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            try:
                child, line = self._lines.get(timeout=timeout)
            except Empty:
                self._kill()
                break
            if line is not None:
                self._handle(child, line)
                continue
            self._running.remove(child)
            if failure := child.failure():
                failures.append(failure)
                self._terminate()
        return failures

    def end(self) -> None:
        """Ask all children to end, and wait for at most their grace until they have."""
        try:
            self._terminate()
            self.follow()
        except BaseException:  # a second signal to this process
            self._kill()

    def _terminate(self) -> None:
        if self._deadline is not None:
            return
        for child in self._running:
            for process in child.workers():
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
        # Set last: if this call is interrupted, the next one signals all children again.
        self._deadline = time.monotonic() + preemption.GRACE_SECONDS + 1

    def _kill(self) -> None:
        for child in self._running:
            child.process.kill()
        for child in self._running:
            child.process.wait()
        self._running.clear()

    def _read(self, child: _Child, errors: Thread) -> None:
        """Queue the lines of a child. Runs in its own thread, since a child would block at a full pipe."""
        assert child.process.stdout is not None
        for line in child.process.stdout:
            self._lines.put((child, line))
        errors.join(timeout=5)
        self._lines.put((child, None))

    def _handle(self, child: _Child, line: str) -> None:
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
        elif not _is_cause(child.last.get("error")):  # all processes of a launcher write to this pipe
            child.last = message
