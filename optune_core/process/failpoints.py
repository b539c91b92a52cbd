"""Named points at which the fault suite kills, stops or fails this process. Without a plan they do nothing.

OPTUNE_FAILPOINTS names a folder with a file `plan` of lines `action point`. The first process that reaches a planned
point removes the line from the plan, writes it to the file `reached`, and acts. Every point that a process passes is
written to the file `passed`, so that a test can enumerate the points of a real run.
"""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
_ENVIRONMENT = "OPTUNE_FAILPOINTS"


def reach(point: str) -> None:
    """Pass a point, or perform the action that is planned for it.

    Actions: `kill`, `stop` and `term` send that signal to this process; `kill-group` kills its process group;
    `no-space` raises OSError (ENOSPC); `no-memory` raises torch.OutOfMemoryError.
    """
    folder = os.environ.get(_ENVIRONMENT)
    if folder is not None and (action := _take(Path(folder), point)) is not None:
        _act(action)


def _take(folder: Path, point: str) -> str | None:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (folder / "passed").open("a") as passed:
            passed.write(f"{point}\n")
        plan = (folder / "plan").read_text().splitlines() if (folder / "plan").exists() else []
        for line in plan:
            action, _, planned = line.partition(" ")
            if planned == point:
                plan.remove(line)
                (folder / "plan").write_text("".join(f"{left}\n" for left in plan))
                with (folder / "reached").open("a") as reached:
                    reached.write(f"{line}\n")
                return action
    return None


def _act(action: str) -> None:
    if action == "kill-group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif action == "no-space":
        raise OSError(28, "No space left on device")
    elif action == "no-memory":
        import torch

        raise torch.OutOfMemoryError("out of memory (failpoint)")
    else:
        os.kill(os.getpid(), _SIGNALS[action])
