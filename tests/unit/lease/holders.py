"""The lease of `run`: its record, a record as another machine left it, and a holder that can be killed."""

from __future__ import annotations

import select
import subprocess
import sys
from dataclasses import replace

from optune_core.storage.lease import LeaseRecord, read_lease
from optune_core.storage.local import LocalObjects
from tests.waiting import PATIENCE

TTL = 0.4
PATH = "runs/run/lease.json"


def record(objects: LocalObjects) -> LeaseRecord:
    found = read_lease(objects, "run")
    assert found is not None
    return found


def put(objects: LocalObjects, **changes: object) -> LeaseRecord:
    """Write the record of a holder on another machine."""
    other = LeaseRecord("working", "them", "elsewhere, process 7", "boot/pid:[1]/7-1", 1, 5, 1, "", {})
    other = replace(other, **changes)  # type: ignore[arg-type]
    assert objects.swap(PATH, objects.read(PATH), other.to_bytes())
    return other


class Runner:
    """A real process that takes the lease of `run` and holds it until it is killed or asked to release it."""

    CODE = """
import sys
from pathlib import Path
from optune_core.storage import lease
from optune_core.storage.local import LocalObjects
from tests.waiting import PATIENCE
lease.TTL_SECONDS, lease.BEAT_SECONDS = float(sys.argv[2]), float(sys.argv[2]) / 8
held = lease.take(LocalObjects(Path(sys.argv[1])), "run", {"who": "child"}, on_lost=lambda: print("lost", flush=True))
print("taken", flush=True)
sys.stdin.readline()
held.release("finished", "by the child")
print("released", flush=True)
"""

    def __init__(self, objects: LocalObjects) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(objects.root), str(TTL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "taken"

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the runner says nothing"
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
