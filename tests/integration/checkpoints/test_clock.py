"""Checkpoints are due by the clock and when the process is asked to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import Preempted
from optune_core.process import preemption
from optune_core.training import callbacks
from optune_core.training.spec import Training
from tests.tiny import WDPO


class Recorder:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def commit(self, step: int, folder: Path) -> None:
        self.steps.append(step)

    def wait(self) -> None:
        self.steps.append(-1)


def steps_saved(monkeypatch: pytest.MonkeyPatch, every: float, seconds_a_step: float, steps: int) -> list[int]:
    from types import SimpleNamespace

    clock = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    recorder = Recorder()
    callback = callbacks.SaveByTheClock(every, recorder)
    args, state = SimpleNamespace(output_dir="."), SimpleNamespace(max_steps=steps, is_world_process_zero=True)
    callback.on_train_begin(args, state, None)
    for state.global_step in range(1, steps + 1):
        clock[0] += seconds_a_step
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(args, state, control)
        if control.should_save:
            callback.on_save(args, state, control)
    return recorder.steps


def test_checkpoints_are_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_saved(monkeypatch, every=25, seconds_a_step=10, steps=10) == [3, 6, 9]
    assert steps_saved(monkeypatch, every=5, seconds_a_step=10, steps=4) == [1, 2, 3]  # the policy is the fourth
    assert steps_saved(monkeypatch, every=0, seconds_a_step=0, steps=3) == [1, 2]
    assert steps_saved(monkeypatch, every=300, seconds_a_step=1, steps=20) == []


def test_a_request_to_end_saves_at_once_and_waits_for_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(Recorder, "wait", lambda self: recorded.extend([*self.steps, -1]))
    monkeypatch.setattr(callbacks, "reach", lambda point: preemption._requested.set())
    with pytest.raises(Preempted):
        steps_saved(monkeypatch, every=300, seconds_a_step=1, steps=5)
    assert recorded == [1, -1]


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("30s", 30), ("1h", 3600), ("0s", 0)])
def test_durations_are_read_in_seconds(text: str, seconds: int) -> None:
    assert Training(loss=WDPO, checkpoint_every=text).checkpoint_seconds == seconds


@pytest.mark.parametrize("text", ["5", 300, "5 m", "-1s", "1.5h", "", "m", None])
def test_an_invalid_duration_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write an integer and its unit, such as 30s"):
        Training(loss=WDPO, checkpoint_every=text)
