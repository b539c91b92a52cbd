"""Background processes that outlive the shell, remembered by a pid file that cannot point at a stranger.

A pid file holds the pid *and the birth* of the process, so a pid that the system gave to somebody else
is never mistaken for ours: such a part counts as stopped, and `stop` leaves the stranger alone.
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

# Variables of the caller's shell that would overrule the credentials and paths that we pass on.
_NOT_INHERITED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "PREFECT_PROFILE")

_children: dict[int, subprocess.Popen[bytes]] = {}  # what this very process started: has to be reaped


class StackError(RuntimeError):
    """A part of the stack did not do what it was asked; the message says which, and where its log is."""


@dataclass(frozen=True)
class Daemon:
    """One background process, with its pid file and log in `folder`."""

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid.json"

    def running(self) -> psutil.Process | None:
        """The process in the pid file, if it is still that process."""
        record = self._record()
        try:
            process = psutil.Process(record["pid"])
            ours = _birth(process.pid) == record["birth"] and not _gone(process)
        except (KeyError, OSError, psutil.NoSuchProcess):
            return None
        return process if ours else None

    def same_as(self, command: list[str], settings: Mapping[str, str]) -> bool:
        """Is it running, and was it started with this command and these settings?"""
        return self.running() is not None and self._record().get("print") == _fingerprint(command, settings)

    def start(self, command: list[str], settings: Mapping[str, str]) -> None:
        """Start `command` in a session of its own, with `settings` on top of the caller's environment."""
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
        """Remember a process that something else started on our behalf."""
        record = {"pid": pid, "birth": _birth(pid), "started": time.time(), "print": fingerprint}
        write_private(self.pid_file, json.dumps(record))

    def started_at(self) -> float:
        return float(self._record().get("started", 0.0))

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return once `ready()` holds; raise StackError if the process ends first, or after `timeout` s."""
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
        """Keep the process if it is the one wanted and healthy, else (re)start it; True if it was kept."""
        if self.same_as(command, settings) and ready():
            return True
        self.stop(grace=5)
        self.start(command, settings)
        self.wait_until(ready, timeout)
        return False

    def stop(self, ask: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> bool:
        """Ask the process to end, then its descendants; kill what is left after `grace` seconds each."""
        process = self.running()
        if process is not None:
            family = [process, *_descendants(process)]
            signal_all([process], ask)
            wait_gone([process], grace)
            orphans = wait_gone(family[1:], 2)
            signal_all(orphans, signal.SIGTERM)  # a trainer, say, writes its checkpoint now
            wait_gone(orphans, grace)
            signal_all(family, signal.SIGKILL)
            left = wait_gone(family, 5)
            if left:
                raise StackError(f"{self.name}: process {left[0].pid} does not end, not even when killed")
        self.pid_file.unlink(missing_ok=True)
        return process is not None

    def error(self, what: str) -> StackError:
        return StackError(f"{self.name} {what}.\n{tail(self.log)}")

    def _record(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.pid_file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, under its path: what an error message has to show."""
    text = log.read_text(errors="replace") if log.exists() else ""
    last = text.splitlines()[-lines:] or ["(empty)"]
    return f"Its log is {log}; the last lines:\n" + "\n".join(f"    {line}" for line in last)


def private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file that only its owner can read, never visible half-written."""
    private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with `settings` on top, and loopback never sent through a proxy."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    exempt = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), "127.0.0.1"]))
    return inherited | {"NO_PROXY": exempt, "no_proxy": exempt} | dict(settings)


def _fingerprint(command: list[str], settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([command, sorted(settings.items())]).encode()).hexdigest()


def _birth(pid: int) -> str:
    """What tells a process from a later one with the same pid, whatever happens to the clock."""
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


def _gone(process: psutil.Process) -> bool:
    """Has it ended? A zombie has, once its last thread let go of its ports; one of our own is reaped on the way."""
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
    """Wait for the processes to end; return those which have not."""
    deadline = time.monotonic() + timeout
    left = [process for process in processes if not _gone(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if not _gone(process)]
    return left
