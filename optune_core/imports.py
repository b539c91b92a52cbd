"""Packages that a library imports wherever they are installed, though nothing here uses what it wants them for.

transformers imports scikit-learn for assisted generation alone, which takes every child process about three seconds.
"""

from __future__ import annotations

import sys

_UNUSED = ("sklearn",)


def hide_unused() -> None:
    """From now on they are as if not installed, for this process."""
    for package in _UNUSED:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def show_all() -> None:
    """Code that is not ours is about to run, and may want them."""
    for package in _UNUSED:
        if sys.modules.get(package, ...) is None:
            del sys.modules[package]
