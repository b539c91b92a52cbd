"""Events between the system calls of one storage operation on a disk."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optune_core.storage.local import LocalObjects
from tests.waiting import until

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path)


def just_before(patch: pytest.MonkeyPatch, call: str, what: Callable[[], None]) -> None:
    """Do something once, right before a function of `os` is called."""
    real = getattr(os, call)

    def called(*args: Any, **kwargs: Any) -> Any:
        patch.undo()
        what()
        return real(*args, **kwargs)

    patch.setattr(os, call, called)


def test_a_swap_of_an_absent_object_does_not_overwrite_a_faster_creator(
    disk: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("link", "replace"):  # whichever it uses to give the object its name
        just_before(monkeypatch, call, lambda: disk.create("x", b"theirs"))
    assert not disk.swap("x", None, b"mine")
    assert disk.read("x") == b"theirs"


def test_a_creator_retries_where_the_object_that_refused_it_is_deleted(
    disk: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.create("x", b"theirs")
    link = os.link

    def refused(source: Path, target: Path) -> None:
        try:
            link(source, target)
        except FileExistsError:
            disk.delete("x")
            raise

    monkeypatch.setattr(os, "link", refused)
    assert disk.create("x", b"mine") == b"mine"
    assert disk.read("x") == b"mine"


def test_a_reader_on_a_disk_sees_only_complete_bodies(disk: LocalObjects) -> None:
    bodies = [bytes([n]) * 100_000 for n in range(20)]
    disk.create("x", bodies[0])
    seen: set[bytes | None] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.add(disk.read("x"))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for old, new in itertools.pairwise(bodies):
            assert disk.swap("x", old, new)
        until(lambda: bodies[-1] in seen)
    finally:
        ended.set()
        reader.join()
    assert bodies[-1] in seen
    assert seen <= set(bodies)
