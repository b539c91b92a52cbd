"""Settings of this process's C library for memory that torch frees."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_NEVER = 2**31 - 1
_LARGEST_ON_HEAP = 32 << 20
"""Largest block, in bytes, that glibc takes from its heap; larger ones come from the kernel each time."""


def keep_freed_memory() -> None:
    """Keep freed memory in the process for its next tensors.

    By default glibc returns large blocks to the kernel, which has to clear them page by page when they are requested
    again: a quarter of the time of a training step on a CPU. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in (
            (_MMAP_THRESHOLD, _LARGEST_ON_HEAP),
            (_TRIM_THRESHOLD, _NEVER),
            (_TOP_PAD, 4 * _LARGEST_ON_HEAP),
        ):
            library.mallopt(option, value)
