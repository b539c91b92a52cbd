"""The lease of a run records how each start ended, and limits automatic starts that commit nothing."""

from __future__ import annotations

import contextlib

import pytest

from optune_core.errors import DataError, OptuneError, Preempted, TransientError
from optune_core.storage.lease import MAX_FRUITLESS, hold, is_resumable, read_lease, stop, take
from optune_core.storage.local import LocalObjects
from tests.unit.lease.holders import PATH, put, record
from tests.waiting import until


@pytest.mark.parametrize(
    ("ending", "state", "message", "resumable"),
    [
        (None, "finished", "", False),
        (KeyboardInterrupt(), "stopped", "stopped by the user", False),
        (DataError("no prompts"), "failed", "DataError: no prompts", False),
        (ValueError("a bug?"), "interrupted", "ValueError: a bug?", True),
        (TransientError("503"), "interrupted", "TransientError: 503", True),
        (Preempted("asked to end"), "interrupted", "Preempted: asked to end", True),
        (SystemExit(143), "interrupted", "SystemExit: 143", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_record_holds_how_the_start_ended(
    objects: LocalObjects, ending: BaseException | None, state: str, message: str, resumable: bool
) -> None:
    with pytest.raises(type(ending)) if ending else contextlib.nullcontext(), hold(objects, "run", {}):
        assert is_resumable(record(objects)), "killed now, it would not be resumed"
        if ending:
            raise ending
    ended = record(objects)
    assert (ended.state, ended.message, ended.holder, ended.process) == (state, message, None, None)
    assert is_resumable(ended) is resumable


def test_a_long_message_is_cut(objects: LocalObjects) -> None:
    with pytest.raises(DataError), hold(objects, "run", {}):
        raise DataError("x" * 100_000)
    assert len(record(objects).message) == 2000


def test_the_record_holds_no_secret(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse")
    with pytest.raises(DataError), hold(objects, "run", {}):
        raise DataError("refused with key correct-horse")
    assert record(objects).message == "DataError: refused with key ***"


@pytest.mark.usefixtures("no_beat")
def test_an_unreachable_store_at_the_end_does_not_hide_the_error_of_the_run(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: str, expected: bytes | None, body: bytes) -> bool:
        raise TransientError("away")

    with pytest.raises(DataError, match="the cause"), hold(objects, "run", {}):
        monkeypatch.setattr(objects, "swap", away)
        raise DataError("the cause")


def test_a_run_that_was_never_started_is_not_resumed(objects: LocalObjects) -> None:
    assert read_lease(objects, "run") is None
    assert not is_resumable(None)


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("working", "stopped"),
        ("interrupted", "stopped"),
        ("finished", "finished"),
        ("failed", "failed"),
        ("stopped", "stopped"),
    ],
)
def test_cancelling_stops_only_a_run_that_would_be_resumed(objects: LocalObjects, state: str, after: str) -> None:
    put(objects, state=state)
    stop(objects, "run")
    assert record(objects).state == after
    assert not is_resumable(record(objects))


def test_cancelling_a_run_that_was_never_started_does_nothing(objects: LocalObjects) -> None:
    stop(objects, "run")
    assert objects.read(PATH) is None


def start(objects: LocalObjects, *, progress: bool = False, unasked: bool = True) -> None:
    with pytest.raises(TransientError), hold(objects, "run", {}, unasked=unasked) as lease:
        if progress:
            lease.progressed()
        raise TransientError("preempted")


@pytest.mark.usefixtures("no_beat")
def test_automatic_starts_are_refused_after_too_many_that_committed_nothing(objects: LocalObjects) -> None:
    for n in range(1, MAX_FRUITLESS + 1):
        start(objects)
        assert record(objects).fruitless == n
        assert is_resumable(record(objects)) is (n < MAX_FRUITLESS)
    with pytest.raises(
        OptuneError,
        match=rf"the last {MAX_FRUITLESS} starts committed nothing .*ended with: TransientError: preempted\)",
    ):
        take(objects, "run", {}, unasked=True)
    assert record(objects).starts == MAX_FRUITLESS, "a refused start counts as one"


@pytest.mark.usefixtures("no_beat")
def test_a_person_may_start_a_run_whose_automatic_starts_are_refused(objects: LocalObjects) -> None:
    put(objects, state="interrupted", holder=None, fruitless=MAX_FRUITLESS)
    start(objects, unasked=False, progress=True)
    assert record(objects).fruitless == 0
    assert is_resumable(record(objects))


@pytest.mark.usefixtures("no_beat")
def test_a_commit_resets_the_count_of_fruitless_starts(objects: LocalObjects) -> None:
    for _ in range(MAX_FRUITLESS - 1):
        start(objects)
    start(objects, progress=True)
    assert record(objects).fruitless == 0
    start(objects)
    assert record(objects).fruitless == 1


def test_a_commit_is_recorded_while_the_start_goes_on(objects: LocalObjects) -> None:
    """A start that is killed after a commit is not fruitless."""
    lease = take(objects, "run", {})
    assert record(objects).fruitless == 1
    lease.progressed()
    until(lambda: record(objects).fruitless == 0)
    lease.release("interrupted")


def test_an_automatic_start_that_was_killed_counts_as_fruitless(objects: LocalObjects) -> None:
    put(objects, process=None, fruitless=MAX_FRUITLESS)
    with pytest.raises(OptuneError, match=r"committed nothing \(the last of them ended with: killed\)"):
        take(objects, "run", {}, unasked=True)
