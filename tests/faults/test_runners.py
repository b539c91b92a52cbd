"""Several runners on the same work: the lease avoids repeated work, the commit alone keeps results right."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from tests.faults.driver import Runner, is_stopped
from tests.faults.oracle import assert_sound, run_facts
from tests.faults.uninterrupted import SMALL, Uninterrupted
from tests.tiny import write_config
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]


@pytest.mark.long
@pytest.mark.parametrize("runners", [2, 8])
def test_one_of_several_runners_works_and_the_others_report_it(
    uninterrupted: Uninterrupted,
    api: dict[str, str],
    tmp_path: Path,
    tally: defaultdict[str, float],
    runners: int,
) -> None:
    several = [Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / str(i), api) for i in range(runners)]
    statuses = [process.wait() for process in [runner.start() for runner in several]]
    assert sorted(statuses) == [0] + [2] * (runners - 1)
    for runner, status in zip(several, statuses, strict=True):
        assert (status == 0) == ("is being worked on" not in runner.log())
    assert_sound(several[0].store, "kills")
    assert run_facts(several[0].store, "kills") == uninterrupted.facts
    tally["races of runners"] += 1


@pytest.mark.long
@pytest.mark.parametrize("runners", [2, 8])
def test_runs_that_race_for_the_same_artifacts_all_get_the_same_ones(
    tiny: Path, api: dict[str, str], tmp_path: Path, tally: defaultdict[str, float], runners: int
) -> None:
    """Runs of different names hold different leases, so only the commit coordinates them."""
    store = str(tmp_path / "store")
    names = [f"race-{i}" for i in range(runners)]
    several = [Runner(write_config(tiny, name=name, **SMALL), store, tmp_path / name, api) for name in names]
    statuses = [process.wait() for process in [runner.start() for runner in several]]
    assert statuses == [0] * runners
    ends = [run_facts(store, name) for name in names]
    assert all(end == ends[0] for end in ends)
    for name in names:
        assert_sound(store, name)
    tally["races of runners"] += 1


def test_a_runner_paused_past_its_lease_is_replaced_and_ends(
    uninterrupted: Uninterrupted, api: dict[str, str], tmp_path: Path, tally: defaultdict[str, float]
) -> None:
    lease = {"OPTUNE_LEASE_SECONDS": "4"}
    paused = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "paused", api | lease)
    process, _ = paused.start_and_hold("create.after/responses")
    paused.plan("stop swap.after/lease")  # the flow's process, when it has let go of the store's lock after a beat
    until(lambda: is_stopped(psutil.Process(process.pid)))
    try:
        other = Runner(uninterrupted.config, paused.store, tmp_path / "other", api | lease)
        other.finish(most_starts=1)
        before = run_facts(paused.store, "kills")
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(PATIENCE) != 0
    assert "taken over by another process" in (paused.folder / "log").read_text()
    assert before == uninterrupted.facts
    assert run_facts(paused.store, "kills") == uninterrupted.facts
    assert_sound(paused.store, "kills")
    tally["races of runners"] += 1
