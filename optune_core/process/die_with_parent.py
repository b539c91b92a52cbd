"""Tie a process to its parent, because a process that outlives a killed flow would keep the GPU.

`python -m optune_core.process.die_with_parent COMMAND …` replaces itself by COMMAND, tied to the parent; it is for
commands that do not tie themselves. Works on Linux; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "OPTUNE_PARENT"
"""Environment variable with the parent's pid, by which a child notices that the parent died before the child was
tied to it."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process killed when its parent ends, and end it now if the parent already has. Survives exec."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    expected = os.environ.pop(PARENT, None)
    if expected is not None and os.getppid() != int(expected):
        os._exit(1)


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
