"""The lease of a run: one worker at a time, and a true record of how the last start ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from optune_core.errors import DataError, OptuneError, Preempted, RunBusy, StoreError, TransientError
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import MAX_FRUITLESS, Lease, LeaseRecord, hold, is_resumable, read_lease, stop, take
from optune_core.storage.objects import LocalObjects

TTL = 0.4
PATH = "runs/run/lease.json"


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "store")


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", TTL)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", TTL / 8)


@pytest.fixture
def no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that move only when the test moves them."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 3600)


def record(objects: LocalObjects) -> LeaseRecord:
    found = read_lease(objects, "run")
    assert found is not None
    return found


def put(objects: LocalObjects, **changes: object) -> LeaseRecord:
    """A lease as another machine left it."""
    other = LeaseRecord("working", "them", "elsewhere, process 7", "boot/pid:[1]/7-1", 1, 5, 1, "", {})
    other = replace(other, **changes)  # type: ignore[arg-type]
    assert objects.swap(PATH, objects.read(PATH), other.to_bytes())
    return other


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


class Runner:
    """A real process that takes the lease of `run` and holds it until it is killed or told to let go."""

    CODE = """
import sys
from pathlib import Path
from optune_core.storage import lease
from optune_core.storage.objects import LocalObjects
lease.TTL_SECONDS, lease.BEAT_SECONDS = float(sys.argv[2]), float(sys.argv[2]) / 8
held = lease.take(LocalObjects(Path(sys.argv[1])), "run", {"who": "child"}, on_lost=lambda: print("lost", flush=True))
print("taken", flush=True)
sys.stdin.readline()
held.release("finished", "by the child")
print("released", flush=True)
"""

    def __init__(self, objects: LocalObjects) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(objects.root), str(TTL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "taken"

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        assert ready, "the runner says nothing"
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def runner(objects: LocalObjects) -> Iterator[Runner]:
    runner = Runner(objects)
    yield runner
    runner.end()


# Taking


def test_a_lease_that_is_held_says_who_holds_it_and_what_for(objects: LocalObjects) -> None:
    lease = take(objects, "run", {"rho": 0.5})
    held = record(objects)
    assert (held.state, held.starts, held.config) == ("working", 1, {"rho": 0.5})
    assert f"process {os.getpid()}" in held.where
    lease.release("finished")


def test_a_live_lease_refuses_a_second_runner_and_names_the_first(objects: LocalObjects) -> None:
    lost: list[str] = []
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    with pytest.raises(RunBusy, match=rf"'run' is being worked on .*process {os.getpid()}.*optune status run"):
        take(objects, "run", {})
    lease.release("finished")
    assert lost == []
    assert record(objects).state == "finished"


def test_a_held_lease_beats_and_a_released_one_does_not(objects: LocalObjects) -> None:
    lease = take(objects, "run", {})
    eventually(lambda: record(objects).beat >= 2, "a beat")
    lease.release("finished")
    assert not lease._thread.is_alive()


def test_a_released_lease_is_taken_without_waiting(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    take(objects, "run", {}).release("interrupted")
    monkeypatch.setattr(lease_module, "_watch", None)  # nobody to watch
    second = take(objects, "run", {})
    assert record(objects).starts == 2
    second.release("finished")


def test_leases_of_two_runs_do_not_meet(objects: LocalObjects) -> None:
    one, two = take(objects, "one", {}), take(objects, "two", {})
    one.release("finished")
    two.release("failed")
    assert [read_lease(objects, run).state for run in ("one", "two")] == ["finished", "failed"]  # type: ignore[union-attr]


def test_of_racing_runners_one_takes_the_lease(objects: LocalObjects) -> None:
    barrier = threading.Barrier(8)
    taken: list[Lease] = []
    refused: list[RunBusy] = []
    lost: list[str] = []

    def race() -> None:
        barrier.wait()
        try:
            taken.append(take(objects, "run", {}, on_lost=lambda: lost.append("lost")))
        except RunBusy as busy:
            refused.append(busy)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused), lost) == (1, 7, [])
    taken[0].release("finished")


def test_of_racing_runners_one_takes_over_from_a_dead_one(objects: LocalObjects) -> None:
    put(objects)
    test_of_racing_runners_one_takes_the_lease(objects)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{torn",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"state": "working"}',
        json.dumps(
            {**json.loads(LeaseRecord("working", "x", "", None, 1, 1, 1, "").to_bytes()), "starts": "x"}
        ).encode(),
        json.dumps(
            {**json.loads(LeaseRecord("working", "x", "", None, 1, 1, 1, "").to_bytes()), "state": "?"}
        ).encode(),
    ],
)
def test_a_broken_record_is_as_good_as_none(objects: LocalObjects, body: bytes) -> None:
    objects.create(PATH, body)
    assert read_lease(objects, "run") is None
    assert not is_resumable(read_lease(objects, "run"))
    lease = take(objects, "run", {})
    assert record(objects).starts == 1
    lease.release("finished")


@pytest.mark.parametrize("run", ["../x", "a/b", ".hidden", ""])
def test_a_run_name_cannot_leave_its_folder(objects: LocalObjects, run: str) -> None:
    with pytest.raises(StoreError, match="not a valid name"):
        take(objects, run, {})


# Taking over


def test_a_killed_process_of_this_machine_is_taken_over_at_once(
    objects: LocalObjects, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record(objects).config == {"who": "child"}
    os.kill(runner.process.pid, signal.SIGKILL)
    runner.process.wait()
    monkeypatch.setattr(lease_module, "_watch", None)  # watching would be waiting
    lease = take(objects, "run", {})
    assert record(objects).starts == 2
    lease.release("finished")


def test_a_killed_process_that_nobody_buried_is_dead_all_the_same(
    objects: LocalObjects, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(runner.process.pid, signal.SIGKILL)
    stat = Path(f"/proc/{runner.process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    monkeypatch.setattr(lease_module, "_watch", None)
    take(objects, "run", {}).release("finished")


def test_another_process_with_the_dead_ones_number_is_not_mistaken_for_it(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = lease_module._process_identity(os.getpid())
    assert mine is not None
    put(objects, process=f"{mine.rpartition('-')[0]}-1")  # this process's number, born just after the machine
    monkeypatch.setattr(lease_module, "_watch", None)
    take(objects, "run", {}).release("finished")


@pytest.mark.parametrize("process", ["other-boot/pid:[1]/7-1", None])
def test_a_holder_elsewhere_is_taken_over_only_after_it_has_not_moved_for_the_time_to_live(
    objects: LocalObjects, process: str | None
) -> None:
    put(objects, process=process)
    started = time.monotonic()
    lease = take(objects, "run", {})
    assert time.monotonic() - started >= TTL
    assert (record(objects).starts, record(objects).state) == (2, "working")
    lease.release("finished")


def test_a_holder_elsewhere_that_moves_once_is_alive(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    held = put(objects)
    looks = 0
    read = objects.read

    def moves_meanwhile(path: str) -> bytes | None:
        nonlocal looks
        looks += 1
        if looks == 3:
            objects.swap(path, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return read(path)

    monkeypatch.setattr(objects, "read", moves_meanwhile)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_holder_elsewhere_that_lets_go_is_followed_without_waiting_longer(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 600.0)
    held = put(objects)
    monkeypatch.setattr(
        time, "sleep", lambda _: objects.swap(PATH, held.to_bytes(), replace(held, holder=None).to_bytes())
    )
    started = time.monotonic()
    take(objects, "run", {}).release("finished")
    assert time.monotonic() - started < 60


def test_a_watcher_that_was_paused_itself_does_not_rob_a_live_holder(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher stops for longer than the time to live, while the holder goes on beating."""
    held = put(objects)
    clock = 0.0

    def paused(seconds: float) -> None:
        nonlocal clock
        clock += 10 * TTL
        objects.swap(PATH, held.to_bytes(), replace(held, beat=held.beat + 40).to_bytes())

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "sleep", paused)
    with pytest.raises(RunBusy, match="elsewhere"):
        take(objects, "run", {})
    monkeypatch.undo()
    assert record(objects).holder == "them"


def test_a_holder_that_moves_just_before_the_take_over_keeps_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = put(objects)
    swap = objects.swap

    def moved_first(path: str, expected: bytes | None, body: bytes) -> bool:
        swap(path, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return swap(path, expected, body)

    monkeypatch.setattr(objects, "swap", moved_first)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_holder_that_moves_right_after_the_watchers_last_look_keeps_its_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = put(objects)
    clock = 0.0
    read = objects.read

    def pause(seconds: float) -> None:
        nonlocal clock
        clock += TTL

    def moves_after_the_look(path: str) -> bytes | None:
        body = read(path)
        if clock >= TTL:
            objects.read = read  # type: ignore[method-assign]
            assert objects.swap(PATH, held.to_bytes(), replace(held, beat=held.beat + 1).to_bytes())
        return body

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(objects, "read", moves_after_the_look)
    with pytest.raises(RunBusy, match="elsewhere, process 7"):
        take(objects, "run", {})
    assert record(objects).holder == "them"


def test_a_paused_holder_is_overtaken_told_so_and_leaves_the_new_lease_alone(
    objects: LocalObjects, runner: Runner
) -> None:
    os.kill(runner.process.pid, signal.SIGSTOP)
    lease = take(objects, "run", {"who": "second"})  # waits until the time to live is over: it is not dead
    os.kill(runner.process.pid, signal.SIGCONT)
    assert runner.line() == "lost"
    assert record(objects).config == {"who": "second"}
    runner.let_go()
    assert runner.line() == "released"
    assert (record(objects).config, record(objects).state) == ({"who": "second"}, "working")
    assert lease._move(), "the new holder was disturbed"
    lease.release("finished")


def test_a_store_that_is_away_for_a_while_costs_no_lease(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    away = threading.Event()
    failed = threading.Event()
    swap = objects.swap

    def sometimes(path: str, expected: bytes | None, body: bytes) -> bool:
        if away.is_set():
            failed.set()
            raise TransientError("away")
        return swap(path, expected, body)

    monkeypatch.setattr(objects, "swap", sometimes)
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    away.set()
    assert failed.wait(20)
    away.clear()
    beat = record(objects).beat
    eventually(lambda: record(objects).beat > beat, "a beat after the store came back")
    lease.release("finished")
    assert lost == []


@pytest.mark.usefixtures("no_beat")
def test_a_move_that_stands_though_its_answer_was_lost_is_the_holders_own(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    lease = take(objects, "run", {}, on_lost=lambda: lost.append("lost"))
    swap = objects.swap

    def deaf(path: str, expected: bytes | None, body: bytes) -> bool:
        swap(path, expected, body)
        raise TransientError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "swap", deaf)
        with pytest.raises(TransientError):
            lease._move()
    lease.progressed()  # so that the next move is another one
    assert lease._move()
    lease.release("finished")
    assert (record(objects).state, record(objects).fruitless) == ("finished", 0)


@pytest.mark.usefixtures("no_beat")
def test_a_record_that_was_broken_under_its_holder_counts_as_lost(objects: LocalObjects) -> None:
    lease = take(objects, "run", {})
    standing = objects.read(PATH)
    assert objects.swap(PATH, standing, b"{torn")
    assert not lease._move()


# How a start ends


@pytest.mark.parametrize(
    ("ending", "state", "message", "resumable"),
    [
        (None, "finished", "", False),
        (KeyboardInterrupt(), "stopped", "stopped by its user", False),
        (DataError("no prompts"), "failed", "DataError: no prompts", False),
        (ValueError("a bug?"), "interrupted", "ValueError: a bug?", True),
        (TransientError("503"), "interrupted", "TransientError: 503", True),
        (Preempted("asked to end"), "interrupted", "Preempted: asked to end", True),
        (SystemExit(143), "interrupted", "SystemExit: 143", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_record_tells_how_the_start_ended(
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
def test_a_store_that_is_away_at_the_end_does_not_hide_what_went_wrong(
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
def test_cancelling_stops_only_what_would_be_resumed(objects: LocalObjects, state: str, after: str) -> None:
    put(objects, state=state)
    stop(objects, "run")
    assert record(objects).state == after
    assert not is_resumable(record(objects))


def test_cancelling_a_run_that_was_never_started_does_nothing(objects: LocalObjects) -> None:
    stop(objects, "run")
    assert objects.read(PATH) is None


# Starts in a row that committed nothing


def start(objects: LocalObjects, *, progress: bool = False, unasked: bool = True) -> None:
    with pytest.raises(TransientError), hold(objects, "run", {}, unasked=unasked) as lease:
        if progress:
            lease.progressed()
        raise TransientError("preempted")


@pytest.mark.usefixtures("no_beat")
def test_starts_that_commit_nothing_are_counted_and_refused_in_the_end(objects: LocalObjects) -> None:
    for n in range(1, MAX_FRUITLESS + 1):
        start(objects)
        assert record(objects).fruitless == n
        assert is_resumable(record(objects)) is (n < MAX_FRUITLESS)
    with pytest.raises(
        OptuneError, match=rf"{MAX_FRUITLESS} starts in a row committed nothing \(last: TransientError: preempted\)"
    ):
        take(objects, "run", {}, unasked=True)
    assert record(objects).starts == MAX_FRUITLESS, "a refused start counts as one"


@pytest.mark.usefixtures("no_beat")
def test_a_person_may_start_a_run_that_is_not_started_unasked_any_more(objects: LocalObjects) -> None:
    put(objects, state="interrupted", holder=None, fruitless=MAX_FRUITLESS)
    start(objects, unasked=False, progress=True)
    assert record(objects).fruitless == 0
    assert is_resumable(record(objects))


@pytest.mark.usefixtures("no_beat")
def test_a_commit_sets_the_count_to_nothing(objects: LocalObjects) -> None:
    for _ in range(MAX_FRUITLESS - 1):
        start(objects)
    start(objects, progress=True)
    assert record(objects).fruitless == 0
    start(objects)
    assert record(objects).fruitless == 1


def test_a_commit_is_noted_before_the_end(objects: LocalObjects) -> None:
    """A start that is killed after a commit was not in vain."""
    lease = take(objects, "run", {})
    assert record(objects).fruitless == 1
    lease.progressed()
    eventually(lambda: record(objects).fruitless == 0, "a beat with the news")
    lease.release("interrupted")


def test_a_killed_unasked_start_counts(objects: LocalObjects) -> None:
    put(objects, process=None, fruitless=MAX_FRUITLESS)
    with pytest.raises(OptuneError, match=r"committed nothing \(last: killed\)"):
        take(objects, "run", {}, unasked=True)
