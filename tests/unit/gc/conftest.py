"""A store that is filled by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.gc.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")
