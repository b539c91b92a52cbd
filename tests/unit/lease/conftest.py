"""A store, a lease with a short time to live, and a process that holds one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from optune_core.storage import lease as lease_module
from optune_core.storage.local import LocalObjects
from tests.unit.lease.holders import TTL, Runner


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "store")


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", TTL)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", TTL / 8)


@pytest.fixture
def no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let leases beat only when the test calls for it."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 3600)


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a time to live that no test outlasts: a watch ends when the holder beats or releases, however late."""
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 3600.0)
    look_often = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: time.sleep(0.01))
    monkeypatch.setattr(lease_module, "time", look_often)


@pytest.fixture
def runner(objects: LocalObjects) -> Iterator[Runner]:
    runner = Runner(objects)
    yield runner
    runner.end()
