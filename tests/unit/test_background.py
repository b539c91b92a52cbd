"""Calls in the background: made in order, at most two at once, none lost however the work ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from optune_core.process.background import Background
from tests.waiting import PATIENCE, until


def test_calls_are_made_in_order_and_are_over_at_the_end() -> None:
    made: list[int] = []
    with Background() as background:
        for number in range(20):
            background.run(made.append, number)
    assert made == list(range(20))


def test_work_goes_on_beside_two_calls_and_waits_before_the_third() -> None:
    store_answers = threading.Event()
    waited = []

    def slow() -> None:
        waited.append(store_answers.wait(PATIENCE))

    with Background() as background:
        background.run(slow)
        background.run(slow)
        assert waited == []
        third = threading.Thread(target=background.run, args=(slow,))
        third.start()
        until(lambda: len(background._calls) == 1)  # it took the first one out, to wait for its end
        assert third.is_alive() and waited == [], "three calls were in flight"
        store_answers.set()
        third.join()
    assert waited == [True] * 3


def test_an_error_is_raised_by_the_next_call_or_at_the_end() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    failed = threading.Event()
    with pytest.raises(OSError, match="No space"), Background() as background:
        background.run(fail)
        background.run(failed.set)
        assert failed.wait(PATIENCE)
        background.run(lambda: None)
        raise AssertionError("the error did not surface")
    with pytest.raises(OSError, match="No space"), Background() as background:
        background.run(fail)


def test_an_error_of_the_work_is_raised_after_its_calls_are_made() -> None:
    made: list[int] = []
    with pytest.raises(KeyError, match="the work"), Background() as background:
        background.run(made.append, 1)
        background.run(made.append, 2)
        raise KeyError("the work")
    assert made == [1, 2]


PROGRAM = """
import sys, time
from pathlib import Path
from optune_core.process import preemption
from optune_core.process.background import Background
from optune_core.errors import Preempted

def commit():
    while sys.argv[2] == "ending" and not preemption._deferred:
        time.sleep(0.01)
    print("ready", flush=True)
    while not preemption.requested():
        time.sleep(0.01)
    Path(sys.argv[1]).touch()

preemption.install()
try:
    with Background() as background:
        background.run(commit)
        if sys.argv[2] == "working":
            time.sleep(3600)
except Preempted:
    sys.exit(143)
"""


@pytest.mark.parametrize(("when", "status"), [("working", 143), ("ending", 0)])
def test_sigterm_waits_for_the_commit_in_progress(tmp_path: Path, when: str, status: int) -> None:
    committed = tmp_path / "committed"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(committed), when], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == status
    assert committed.exists()
