"""Runs of the command that are killed at planned points or random times and started again until they finish."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.waiting import PATIENCE, until

OPTUNE = str(Path(sys.executable).with_name("optune"))
WORK = {"responses.response": "responses", "scores.scored": "scores", "policy.step": "checkpoint"}
"""A point that is passed once per unit of work → the kind of object whose creation saves the units before it."""


@dataclass
class Runner:
    """One run of one configuration, started as often as it takes."""

    config: Path
    store: str
    folder: Path
    """Folder of failpoints and logs; each runner has its own."""
    environment: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    lost: list[dict[str, int]] = field(default_factory=list)
    """Units of work that were done and not saved, by point, one dictionary a kill."""
    endings: list[int] = field(default_factory=list)
    """Exit statuses, one a start."""
    _read: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def plan(self, *lines: str) -> None:
        """Plan failpoints: `action point`."""
        (self.folder / "plan").write_text("".join(f"{line}\n" for line in lines))

    def planned(self) -> list[str]:
        """Return the lines of the plan that are left."""
        return self._lines("plan")

    def reached(self) -> list[str]:
        """Return the lines of the plan that were done."""
        return self._lines("reached")

    def passed(self) -> list[str]:
        """Return all points passed so far, in order."""
        return self._lines("passed")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [OPTUNE, "run", str(self.config), *self.overrides, "--store", self.store],
                env=os.environ | {"OPTUNE_FAILPOINTS": str(self.folder), "OMP_NUM_THREADS": "1"} | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_until(self, point: str) -> subprocess.Popen[bytes]:
        """Start the command; returns as soon as it has passed the point, while it goes on."""
        process = self.start()
        while point not in self.passed():
            assert process.poll() is None, self.log()
            time.sleep(0.01)
        return process

    def start_and_hold(self, point: str, *, after: str | None = None) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        """Start the command and stop the first of its processes that passes a point (once another one was passed).

        Returns:
            The command's process and the stopped one.
        """
        process = self.start_until(after) if after else None
        self.plan(f"stop {point}")
        process = process or self.start()
        until(lambda: not self.planned() or process.poll() is not None)
        assert process.poll() is None, self.log()
        family = psutil.Process(process.pid)
        (held,) = until(lambda: [each for each in (family, *family.children(recursive=True)) if is_stopped(each)])
        return process, held

    def finish(self, *, most_starts: int) -> None:
        """Start until the command succeeds and nothing is left of the plan."""
        for _ in range(most_starts):
            status = self.start().wait(PATIENCE)
            self._note(status)
            if status == 0:
                assert self.planned() == [], "the run is over, but these points were never reached"
                return
            self._assert_expected(status)
        raise AssertionError(f"not finished after {most_starts} starts: {self.endings}\n{self.log()}")

    def finish_under_fire(self, *, kills: int, seed: int, longest: float) -> None:
        """Start and kill −9 flow process, child or both at random times, `kills` times in a row; then let it finish."""
        draw = random.Random(seed)
        done = 0
        while done < kills:
            process = self.start()
            if self._kill_later(process, draw, longest):
                done += 1
            self._note(process.wait(PATIENCE))
            if self.endings[-1] == 0:
                return
        self.finish(most_starts=3)

    def log(self) -> str:
        """Return the last lines that the command printed."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-40:])

    def _kill_later(self, process: subprocess.Popen[bytes], draw: random.Random, longest: float) -> bool:
        try:
            process.wait(timeout=draw.uniform(1.0, longest))
            return False
        except subprocess.TimeoutExpired:
            pass
        victim = draw.choice(["flow", "child", "group"])
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "flow":
            process.kill()
        else:
            children = psutil.Process(process.pid).children()
            for child in children[:1]:
                child.kill()  # the task is tried again; the run goes on by itself
            time.sleep(1)
            process.kill()
        return True

    def _note(self, status: int) -> None:
        self.endings.append(status)
        lines = self.passed()
        segment, self._read = lines[self._read :], len(lines)
        if status != 0:
            self.lost.append(unsaved(segment))

    def _assert_expected(self, status: int) -> None:
        # Killed, or ended by the error of its killed child (128 + signal).
        assert status in (-signal.SIGKILL, -signal.SIGTERM, 143, 130), f"exit status {status}\n{self.log()}"

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


def is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def is_told_to_end(process: psutil.Process) -> bool:
    """Return whether SIGTERM is pending for a stopped process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


def unsaved(points: list[str]) -> dict[str, int]:
    """Count the units of work in a sequence of points that no later point of it saved."""
    counts = dict.fromkeys(WORK, 0)
    for point in points:
        for unit, kind in WORK.items():
            if point == unit:
                counts[unit] += 1
            elif point in (f"create.after/{kind}", "create.after/policy"):
                counts[unit] = 0
    return counts
