"""An empty store."""

from __future__ import annotations

from pathlib import Path

import pytest

from optune_core.storage import ArtifactStore, open_objects


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))
