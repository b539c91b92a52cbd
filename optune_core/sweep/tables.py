"""The tables of a sweep as cells of text, for the console and for Prefect's UI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optune_core.sweep.results import REWARDS, WIN_SCORE, CellResult, Estimate, OverSeeds, Setting, settings
from optune_core.sweep.sharing import Sharing

_STAGES = ("start engine", "generate", "score", "rank and merge", "train")


@dataclass(frozen=True)
class TextTable:
    title: str
    header: list[str]
    """Names of the columns: the first column holds text, the others numbers."""
    rows: list[list[str]]


def sweep_tables(sweep: str, results: Sequence[CellResult]) -> list[TextTable]:
    """Return each cell's results, its seconds, and both over seeds."""
    return [_reached(sweep, results), _took(sweep, results), _over_seeds(settings(results))]


def sharing_text(sharing: Sharing) -> str:
    """Write what sharing saved."""
    if sharing.unshared == 0:
        return "Nothing is committed yet."
    return (
        f"Sharing: the artifacts took {sharing.made:,.0f} s of work to make once; without sharing all cells together "
        f"would have taken {sharing.unshared:,.0f} s, {sharing.unshared / sharing.made:.2f} times as long: "
        f"{sharing.saved:,.0f} s saved. {sharing.shared} of {sharing.artifacts} artifacts belong to more than one cell."
    )


def notes(results: Sequence[CellResult]) -> list[str]:
    """Return lines about how win scores were judged, and about incomplete cells."""
    judged = sorted({result.compared for result in results if result.compared})
    lines = [f"Win score {text}." for text in judged]
    for result in results:
        if not result.is_complete and result.state in ("failed", "stopped", "interrupted"):
            lines.append(f"{result.run}: {result.state}: {result.message}")
    return lines


def _reached(sweep: str, results: Sequence[CellResult]) -> TextTable:
    rows = [
        [
            _short(sweep, result.run),
            _progress(result),
            *[_interval(result.last(reward), 3) for reward in REWARDS],
            _interval(result.last(WIN_SCORE), 1, signed=False),
        ]
        for result in results
    ]
    header = ["cell", "iterations", "held-out proxy", "held-out gold", "win score"]
    return TextTable("Held-out change from π₀ to the last policy, and win score [95 % over prompts]", header, rows)


def _took(sweep: str, results: Sequence[CellResult]) -> TextTable:
    rows = [
        [
            _short(sweep, result.run),
            *[f"{result.seconds.get(stage, 0.0):,.0f}" for stage in _STAGES],
            f"{result.total_seconds:,.0f}",
            "–" if result.speedup is None else f"{result.speedup:.2f}×",
            f"{result.generated:,}",
        ]
        for result in results
    ]
    header = ["cell", "engine", "gen.", "score", "merge", "train", "all", "speed-up", "prompts"]
    return TextTable(
        "Seconds by stage, shared work included; speed-up over ρ = 1, same loss and seed; regenerated prompts",
        header,
        rows,
    )


def _over_seeds(all_settings: Sequence[Setting]) -> TextTable:
    rows = [
        [
            setting_label(setting),
            f"{len(setting.complete)} of {len(setting.cells)}",
            *[_mean(setting.at(setting.first.config.iterations, reward), 3) for reward in REWARDS],
            _mean(setting.at(setting.first.config.iterations, WIN_SCORE), 1, signed=False),
            _mean(setting.over_seeds(lambda cell: cell.total_seconds), 0, signed=False),
            _mean(setting.over_seeds(lambda cell: cell.speedup), 2, signed=False),
            _mean(setting.over_seeds(lambda cell: float(cell.generated)), 0, signed=False),
        ]
        for setting in all_settings
    ]
    header = ["setting", "seeds", "proxy", "gold", "win score", "seconds", "speed-up", "prompts"]
    return TextTable("Over seeds: mean ± standard deviation of the complete cells", header, rows)


def setting_label(setting: Setting) -> str:
    """Write a setting as `optune, ρ = 0.5; wDPO, β₂ = 1`."""
    return "; ".join(part for part in (setting.first.selection, setting.first.loss, setting.first.others) if part)


def _short(sweep: str, run: str) -> str:
    return run.removeprefix(f"{sweep}-")


def _progress(result: CellResult) -> str:
    done = f"{result.iterations}/{result.config.iterations}"
    return done if result.is_complete else f"{done} {result.state}"


def _interval(estimate: Estimate | None, digits: int, *, signed: bool = True) -> str:
    if estimate is None:
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _mean(found: OverSeeds | None, digits: int, *, signed: bool = True) -> str:
    if found is None:
        return "–"
    form = f"{'+' if signed else ','}.{digits}f"
    return f"{found.mean:{form}}" + ("" if found.deviation is None else f" ± {found.deviation:,.{digits}f}")
