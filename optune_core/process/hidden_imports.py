"""Packages that a library imports wherever they are installed, though nothing here uses what it wants them for.

A child process lives for one stage, and for most of it, on a small run, it imports. transformers wants scikit-learn
for assisted generation alone (three seconds), datasets and scipy for what its trainer is not asked to do here (one
second), and torch, which it is mostly about, even for a tokenizer (three seconds).
"""

from __future__ import annotations

import os
import sys

_UNUSED = ("sklearn", "datasets", "scipy")


def hide_unused() -> None:
    """Make the packages that no stage uses look uninstalled in this process."""
    for package in _UNUSED:
        _hide(package)


def hide_torch() -> None:
    """Make torch look uninstalled too, for a stage that needs no more of transformers than a tokenizer."""
    _hide("torch")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # transformers would advise to install torch


def show_all() -> None:
    """Code that is not ours, or that needs them, is about to run."""
    for package in (*_UNUSED, "torch"):
        if sys.modules.get(package, ...) is None:
            del sys.modules[package]


def _hide(package: str) -> None:
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]
