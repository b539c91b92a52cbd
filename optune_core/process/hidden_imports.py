"""Packages that transformers imports wherever they are installed, although nothing here uses them.

A child process lives for one stage, and on a small run it spends most of its time on imports. transformers imports
scikit-learn for assisted generation only (three seconds), datasets and scipy for functions of its trainer that are not
used here (one second), and torch even for a tokenizer (three seconds).
"""

from __future__ import annotations

import os
import sys

_UNUSED = ("sklearn", "datasets", "scipy")


def hide_unused() -> None:
    """Make the packages that no stage uses appear as not installed, in this process."""
    for package in _UNUSED:
        _hide(package)


def hide_torch() -> None:
    """Make torch appear as not installed too, for a stage that needs no more of transformers than a tokenizer."""
    _hide("torch")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # transformers would advise to install torch


def show_all() -> None:
    """Undo `hide_unused`, before code runs that is a user's or that needs the packages."""
    for package in (*_UNUSED, "torch"):
        if sys.modules.get(package, ...) is None:
            del sys.modules[package]


def _hide(package: str) -> None:
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]
