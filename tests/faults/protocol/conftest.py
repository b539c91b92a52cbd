"""A folder for temporary stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for temporary stores, in memory where possible, since every write is synced."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("ram")
