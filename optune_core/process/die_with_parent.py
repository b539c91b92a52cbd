"""Tie a process to its parent: one that outlives a killed flow would keep the GPU.

`python -m optune_core.process.die_with_parent COMMAND …` becomes COMMAND, tied; it is for launchers that do not tie
themselves. Linux only; elsewhere nothing is tied.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "OPTUNE_PARENT"
"""Variable with the pid of the process that starts us, which tells whether it died before we were tied."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Be killed when the parent ends, or end now if it already has. Survives exec."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    expected = os.environ.pop(PARENT, None)
    if expected is not None and os.getppid() != int(expected):
        os._exit(1)


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
