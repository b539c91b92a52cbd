"""The tiny policy, as transformers computes it and as the trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optune_core.training.logps import compute_inside
from tests.integration.training.sequences import load


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    """The tiny policy with its own forward pass."""
    return load(tiny)


@pytest.fixture(scope="module")
def packed_model(tiny: Path) -> Any:
    model = load(tiny)
    compute_inside(model, "sdpa")
    return model
