"""Start and supervision of the cells of a sweep, here by cells that take one step at each look."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.logging.loggers import disable_run_logger

from optune_core.storage import Ledger, open_objects
from optune_core.storage.lease import read_lease, take
from optune_core.storage.objects import Objects
from optune_core.sweep.grid import Cell, load_sweep
from tasks import sweep_cells as cells_at_work
from tasks.sweep_cells import compute
from tests.unit.test_sweep_grid import write

GRID = {"selection.rho": [0.3, 0.5, 0.7], "seed": [0, 1]}


@dataclass
class House:
    """Starts the cells of a test and records what it saw."""

    objects: Objects
    failing: set[str] = field(default_factory=set)
    at_work: list[str] = field(default_factory=list)
    most: int = 0
    started: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    """Cells that began while another one made the same iteration 0."""

    def start(self, cell: Cell) -> Stepwise:
        beside = [run for run in self.at_work if run.endswith(f"seed_{cell.config.seed}")]
        runs = [run for run in self.started if run.endswith(f"seed_{cell.config.seed}")]
        if beside and not any(Ledger(self.objects, run).iteration(0) for run in runs):
            self.doubled.append(cell.run)
        self.started.append(cell.run)
        self.at_work.append(cell.run)
        self.most = max(self.most, len(self.at_work))
        return Stepwise(self, cell)


class Stepwise:
    """A cell that commits one iteration at each look."""

    def __init__(self, house: House, cell: Cell) -> None:
        self.house, self.cell, self.step = house, cell, 0
        self.told: list[int] = []
        self.lease = take(house.objects, cell.run, cell.config.model_dump(mode="json"))

    def end(self) -> str | None:
        ledger = Ledger(self.house.objects, self.cell.run)
        if self.cell.run in self.house.failing:
            self.lease.release("failed", "DataError: no prompt has a pair")
        elif self.step < self.cell.config.iterations:
            ledger.commit_iteration(self.step, {"iteration": self.step})
            self.step += 1
            return None
        else:
            self.lease.release("finished")
        self.house.at_work.remove(self.cell.run)
        return "ended"

    def send_signal(self, number: int) -> None:
        self.told.append(number)

    def wait(self) -> None:
        self.lease.release("stopped" if self.told == [signal.SIGINT] else "interrupted")


@pytest.fixture(autouse=True)
def at_once_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cells_at_work, "_POLL_SECONDS", 0)
    with disable_run_logger():
        yield


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(open_objects(str(tmp_path / "store")))


def grid(tmp_path: Path) -> list[Cell]:
    return load_sweep(write(tmp_path, grid=GRID)).cells


@pytest.mark.parametrize("at_once", [1, 2, 5, None])
def test_every_cell_runs_once_and_none_repeats_work_that_another_is_doing(
    house: House, tmp_path: Path, at_once: int | None
) -> None:
    wanted = grid(tmp_path)
    assert compute(house.objects, wanted, house.start, at_once) == {}
    assert sorted(house.started) == sorted(cell.run for cell in wanted)
    assert house.doubled == []
    assert house.most == at_once if at_once in (1, 2) else house.most > 2
    assert compute(house.objects, wanted, house.start, at_once) == {}
    assert len(house.started) == len(wanted), "what is complete is not started again"


def test_a_failed_cell_stops_no_other_and_is_retried_by_the_next_start(house: House, tmp_path: Path) -> None:
    wanted = grid(tmp_path)
    house.failing = {wanted[0].run}
    assert compute(house.objects, wanted, house.start, 2) == {wanted[0].run: "DataError: no prompt has a pair"}
    assert len(house.started) == len(wanted)
    house.failing = set()
    assert compute(house.objects, wanted, house.start, 2) == {}
    assert house.started[len(wanted) :] == [wanted[0].run]


def test_complete_cells_continue_when_the_sweep_wants_more_iterations(house: House, tmp_path: Path) -> None:
    compute(house.objects, grid(tmp_path), house.start, 2)
    longer = load_sweep(write(tmp_path, grid=GRID), ["iterations=3"]).cells
    compute(house.objects, longer, house.start, 2)
    assert {len(Ledger(house.objects, cell.run).iterations()) for cell in longer} == {3}


@pytest.mark.parametrize(("told", "state"), [(KeyboardInterrupt, "stopped"), (SystemExit, "interrupted")])
def test_a_signal_is_passed_to_the_cells_and_their_end_is_awaited(
    house: House, tmp_path: Path, told: Any, state: str
) -> None:
    wanted = grid(tmp_path)

    class Interrupted(Stepwise):
        def end(self) -> str | None:
            raise told

    with pytest.raises(told):
        compute(house.objects, wanted, lambda cell: Interrupted(house, cell), 2)
    states = [lease.state for cell in wanted if (lease := read_lease(house.objects, cell.run))]
    assert states == [state, state]


def test_a_cell_that_another_process_works_on_is_retried_until_it_is_free(house: House, tmp_path: Path) -> None:
    (cell,) = load_sweep(write(tmp_path, grid={"seed": [0]})).cells
    other = take(house.objects, cell.run, {})
    refusals: list[Refused] = []

    def start(cell: Cell) -> Refused | Stepwise:
        if len(refusals) < 2:
            refusals.append(Refused())
            return refusals[-1]
        other.release("interrupted")
        return house.start(cell)

    assert compute(house.objects, [cell], start, 1) == {}
    assert house.started == [cell.run]


class Refused:
    """A cell whose process found the lease held."""

    def end(self) -> str | None:
        return "RunBusy"

    def send_signal(self, number: int) -> None:
        """It has ended."""

    def wait(self) -> None:
        """It has ended."""
