"""The results of a sweep's cells, and their means over seeds, read from the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from optune_core.config import OptuneConfig
from optune_core.reports.run_state import last_start
from optune_core.reports.summary import held_out_change
from optune_core.selection.everything import simplest
from optune_core.storage import ArtifactStore, Ledger
from optune_core.storage.lease import read_lease
from optune_core.sweep.grid import Cell

REWARDS = ("proxy", "gold")
WIN_SCORE = "win score"
_OF_A_CELL = ("selection.rho", "selection.type", "training.loss.type", "training.loss.beta2", "seed")


@dataclass(frozen=True)
class Estimate:
    """A number with a 95 % interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """π_t of a cell."""

    t: int
    seconds: float
    """Seconds of the iterations before it."""
    metrics: dict[str, Estimate]
    """`proxy` and `gold`: change of the mean held-out reward from π_0; `win score` (Eq. 7); those that are known."""


@dataclass(frozen=True)
class CellResult:
    """The committed results of a cell."""

    run: str
    config: OptuneConfig
    others: str
    """Its values of the grid other than ρ, selector, loss, β₂ and seed, as a text."""
    state: str
    message: str
    points: list[Point]
    """One entry a policy, from π_0 on."""
    seconds: dict[str, float]
    """Seconds by stage, over all iterations."""
    generated: int
    """Prompts that were regenerated, over all iterations."""
    compared: str
    """Baseline and judge of the win score, as a text; empty without a win score."""
    speedup: float | None = None
    """Over the cell that differs in the selection alone and regenerates every prompt."""

    @property
    def iterations(self) -> int:
        return len(self.points) - 1

    @property
    def is_complete(self) -> bool:
        """Return whether nothing is missing. A run killed after its last iteration can lack its last scores."""
        return self.state == "finished" and self.iterations >= self.config.iterations

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def selection(self) -> str:
        return selection_label(self.config)

    @property
    def loss(self) -> str:
        return loss_label(self.config)

    def last(self, metric: str) -> Estimate | None:
        return self.points[-1].metrics.get(metric)


@dataclass(frozen=True)
class OverSeeds:
    """Mean and deviation of a number over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None with one seed."""
    seeds: int


@dataclass(frozen=True)
class Setting:
    """The cells that differ in nothing but their seed."""

    cells: list[CellResult]

    @property
    def first(self) -> CellResult:
        return self.cells[0]

    @property
    def complete(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.is_complete]

    def over_seeds(self, number: Callable[[CellResult], float | None]) -> OverSeeds | None:
        """Return mean and deviation over the seeds whose cell is complete and has the number."""
        return over_seeds([value for cell in self.complete if (value := number(cell)) is not None])

    def at(self, t: int, metric: str) -> OverSeeds | None:
        """Return mean and deviation of a metric of π_t."""
        return self.over_seeds(lambda cell: found.value if (found := cell.points[t].metrics.get(metric)) else None)

    def seconds_at(self, t: int) -> float:
        """Return the mean seconds of the iterations before π_t."""
        return fmean(cell.points[t].seconds for cell in self.complete)


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """Return mean and sample standard deviation; None without values."""
    if not values:
        return None
    return OverSeeds(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def read_cells(store: ArtifactStore, cells: Sequence[Cell]) -> list[CellResult]:
    """Return the cells' results, in the same order."""
    results = [_read(store, cell) for cell in cells]
    full = {_without_selection(result): result for result in results if _is_full(result)}
    return [replace(result, speedup=_speedup(result, full.get(_without_selection(result)))) for result in results]


def settings(results: Sequence[CellResult]) -> list[Setting]:
    """Group the cells that differ in their seed alone, in the order of the file."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        seedless = result.config.model_copy(update={"name": "any", "seed": 0}).model_dump_json()
        groups.setdefault(seedless, []).append(result)
    return [Setting(cells) for cells in groups.values()]


def known_metrics(results: Sequence[CellResult]) -> list[str]:
    """Return the win score if any cell has one, else the held-out rewards that cells have."""
    known = {metric for result in results for point in result.points for metric in point.metrics}
    return [WIN_SCORE] if WIN_SCORE in known else [reward for reward in REWARDS if reward in known]


def selection_label(config: OptuneConfig) -> str:
    """Return the label of the selection, and of the samples that the loss draws beside it."""
    label, share = simplest(config.selection).label, config.training.loss.online_share
    return label if share is None else f"{label}, samples of ρ = {share:g}"


def loss_label(config: OptuneConfig) -> str:
    """Return the label of the loss."""
    return config.training.loss.label


def _read(store: ArtifactStore, cell: Cell) -> CellResult:
    ledger = Ledger(store.objects, cell.run)
    records = ledger.iterations()[: cell.config.iterations]
    compared = ledger.evaluations("win_score")
    named = [record for record in compared if record["name"] == compared[0]["name"]]
    wins = {record["iteration"]: _win(record) for record in named}
    seconds: dict[str, float] = {}
    points = [Point(0, 0.0, {WIN_SCORE: wins[0]} if 0 in wins else {})]
    for t, record in enumerate(records, start=1):
        for stage, took in record["timing"].items():
            seconds[stage] = seconds.get(stage, 0.0) + took
        changes = held_out_change(store, ledger, 0, t)
        metrics = {name: _change(change) for name, change in changes.items() if change["prompts"] > 0}
        points[0].metrics.update({name: Estimate(0.0, 0.0, 0.0) for name in metrics})
        if t in wins:
            metrics[WIN_SCORE] = wins[t]
        points.append(Point(t, sum(seconds.values()), metrics))
    start = last_start(read_lease(store.objects, cell.run))
    return CellResult(
        run=cell.run,
        config=cell.config,
        others=", ".join(f"{key} = {value}" for key, value in cell.values.items() if key not in _OF_A_CELL),
        state=start["state"] or "waiting",
        message=start["message"],
        points=points,
        seconds=seconds,
        generated=sum(record["metrics"]["selection"]["selected"] for record in records),
        compared=f"against {named[0]['baseline']}, judged by {named[0]['judge']}" if named else "",
    )


def _win(record: dict[str, Any]) -> Estimate:
    metrics = record["metrics"]
    return Estimate(metrics["win_score"], metrics["low"], metrics["high"])


def _change(change: dict[str, Any]) -> Estimate:
    return Estimate(change["difference"], change["low"], change["high"])


def _is_full(result: CellResult) -> bool:
    return result.config.selection.share == 1.0


def _without_selection(result: CellResult) -> str:
    return result.config.model_copy(update={"name": "any"}).model_dump_json(exclude={"selection"})


def _speedup(result: CellResult, full: CellResult | None) -> float | None:
    if full is None or full is result or not (full.is_complete and result.is_complete) or result.total_seconds == 0:
        return None
    return full.total_seconds / result.total_seconds
