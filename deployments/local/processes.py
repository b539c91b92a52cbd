"""Background processes that outlive the shell, remembered by a pid file that cannot name an unrelated process.

A pid file holds the pid *and the start time* of the process. If the system gave the pid to another process, the part
of the stack counts as stopped, and `stop` does not touch that process.
"""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_NOT_INHERITED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "PREFECT_PROFILE")
"""Variables of the caller's shell that would override the credentials and paths that the stack sets."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this process started and has to reap, by pid."""


class StackError(RuntimeError):
    """A part of the stack failed; the message names the part and its log."""


@dataclass(frozen=True)
class Daemon:
    """One background process, with its pid file and log in `folder`."""

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        """File of its standard output and standard error."""
        return self.folder / "log.txt"

    @property
    def pid_file(self) -> Path:
        """File that remembers the process."""
        return self.folder / "pid.json"

    def running(self) -> psutil.Process | None:
        """Return the process in the pid file if it still runs, otherwise None."""
        record = self._record()
        try:
            process = psutil.Process(record["pid"])
            ours = _birth(process.pid) == record["birth"] and not _has_ended(process)
        except (KeyError, OSError, psutil.NoSuchProcess):
            return None
        return process if ours else None

    def same_as(self, command: list[str], settings: Mapping[str, str]) -> bool:
        """Return whether the process runs and was started with this command and these settings."""
        return self.running() is not None and self._record().get("print") == _fingerprint(command, settings)

    def start(self, command: list[str], settings: Mapping[str, str]) -> None:
        """Start a command in its own session, with `settings` added to the caller's environment."""
        private_folder(self.folder)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                env=environment(settings),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children[child.pid] = child
        self.adopt(child.pid, _fingerprint(command, settings))

    def adopt(self, pid: int, fingerprint: str = "") -> None:
        """Remember a process that another program has started, as this daemon's."""
        record = {"pid": pid, "birth": _birth(pid), "started": time.time(), "print": fingerprint}
        write_private(self.pid_file, json.dumps(record))

    def started_at(self) -> float:
        """Return the time of the last start, Unix time in seconds; 0 if there was none."""
        return float(self._record().get("started", 0.0))

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready()` is true. Raises StackError if the process ends before, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.running() is None:
                raise self.error("ended while starting")
            if time.monotonic() > deadline:
                raise self.error(f"was not ready after {timeout:.0f} s")
            time.sleep(0.2)

    def ensure(
        self, command: list[str], settings: Mapping[str, str], ready: Callable[[], bool], timeout: float
    ) -> bool:
        """Keep the process if it has this command and these settings and is ready, otherwise (re)start it.

        Returns:
            Whether the process was kept.
        """
        if self.same_as(command, settings) and ready():
            return True
        self.stop(grace=5)
        self.start(command, settings)
        self.wait_until(ready, timeout)
        return False

    def stop(self, ask: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> bool:
        """Ask the process to end, then its descendants, and kill those that are left after `grace` seconds each.

        Returns:
            Whether the process was running.
        """
        process = self.running()
        if process is not None:
            family = [process, *_descendants(process)]
            signal_all([process], ask)
            wait_gone([process], grace)
            orphans = wait_gone(family[1:], 2)
            signal_all(orphans, signal.SIGTERM)  # a trainer, for example, writes its checkpoint now
            wait_gone(orphans, grace)
            signal_all(family, signal.SIGKILL)
            left = wait_gone(family, 5)
            if left:
                raise StackError(f"{self.name}: process {left[0].pid} has not ended 5 s after it was killed (SIGKILL)")
        self.pid_file.unlink(missing_ok=True)
        return process is not None

    def error(self, what: str) -> StackError:
        """Make an error from the end of a sentence, with the last lines of the log."""
        return StackError(f"{self.name} {what}.\n{tail(self.log)}")

    def _record(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.pid_file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def tail(log: Path, lines: int = 15) -> str:
    """Format the path and the last lines of a log for an error message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    last = text.splitlines()[-lines:] or ["(empty)"]
    return f"Its log is {log}; the last lines:\n" + "\n".join(f"    {line}" for line in last)


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can enter, with its parents, and return it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner can read. Readers see either the old or the complete new text."""
    private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment with `settings` added, and with loopback exempt from proxies."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    exempt = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), "127.0.0.1"]))
    return inherited | {"NO_PROXY": exempt, "no_proxy": exempt} | dict(settings)


def _fingerprint(command: list[str], settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([command, sorted(settings.items())]).encode()).hexdigest()


def _birth(pid: int) -> str:
    """Return the start time of a process, by which it differs from a later one with the same pid, in a form that does
    not depend on the clock's settings."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():  # not Linux
        return str(psutil.Process(pid).create_time())
    ticks = stat.read_text().rpartition(")")[2].split()[19]
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{ticks}"


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def signal_all(processes: Iterable[psutil.Process], what: signal.Signals) -> None:
    """Send a signal to those of the processes that have not ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # psutil does not signal a later process with that pid
            process.send_signal(what)


def _has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, and reap it if it is a child of this process.

    A zombie counts as ended when only one of its threads is left, since the others may still hold its ports.
    """
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
        return True
    try:
        return not process.is_running() or (
            process.status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{process.pid}/task")) == 1
        )
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def wait_gone(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait up to `timeout` seconds for the processes to end. Returns those that have not."""
    deadline = time.monotonic() + timeout
    left = [process for process in processes if not _has_ended(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if not _has_ended(process)]
    return left
