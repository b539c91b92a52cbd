"""An empty store, and a process to which SIGTERM was not sent."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from optune_core.process import preemption
from optune_core.storage import ArtifactStore, open_objects


@pytest.fixture(autouse=True)
def nobody_asked() -> Iterator[None]:
    """Forget requests to end before and after a test."""
    preemption._requested.clear()
    yield
    preemption._requested.clear()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


@pytest.fixture
def taken_over() -> Iterator[None]:
    """Handle SIGTERM as the process of a stage does, without the timer that would end the tests."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption.threading.Timer, "start", lambda self: None)
        preemption.install()
        yield
    signal.signal(signal.SIGTERM, before)
