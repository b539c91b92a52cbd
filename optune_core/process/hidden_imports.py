"""Packages that a library imports wherever they are installed, though nothing here uses what it wants them for.

A child process lives for one stage, and for most of it, on a small run, it imports. transformers wants scikit-learn
for assisted generation alone (three seconds), datasets and scipy for what its trainer is not asked to do here (one
second), and torch, which it is mostly about, even for a tokenizer (three seconds).
"""

from __future__ import annotations

import os
import sys

from optune_core.stages import TOKENIZING

_UNUSED = ("sklearn", "datasets", "scipy")


def hide_unused(stage: str) -> None:
    """From now on, what the stage does not use is as if not installed, for this process."""
    hidden = list(_UNUSED)
    if stage in TOKENIZING:
        hidden.append("torch")
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would advise to install torch
    for package in hidden:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def show_all() -> None:
    """Code that is not ours, or that needs them, is about to run."""
    for package in (*_UNUSED, "torch"):
        if sys.modules.get(package, ...) is None:
            del sys.modules[package]
