"""The paper's figures from the cells of a sweep: by iteration and ratio, by training time, DPO against wDPO, β₂."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from optune_core.losses.wdpo import WeightedDpo
from optune_core.reports.picture import picture
from optune_core.reports.svg import COLOURS, SYMBOLS, Chart, Key, Range, Ticks, axis_range, integer_ticks
from optune_core.selection.everything import simplest
from optune_core.selection.optune import Optune
from optune_core.sweep.results import WIN_SCORE, CellResult, Estimate, Setting, known_metrics, settings
from optune_core.words import policy

T = TypeVar("T")

_DASHES = ("", "dash1", "dash2", "dash3")
_SYMBOLS = list(SYMBOLS)[:4]
_HEIGHT = 250


@dataclass(frozen=True)
class _Line:
    key: Key
    points: list[tuple[float, Estimate]]


@dataclass(frozen=True)
class _Axis:
    label: str
    range: Range
    ticks: Ticks | None = None


def draw_figures(sweep: str, results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write the figures as SVG files: for the win score, or for each held-out reward where nothing was compared.

    They show the settings of which at least one cell is complete; there are none without such a setting.

    Args:
        folder: created where it is missing; figures of the same name are replaced.

    Returns:
        The files.
    """
    shown = sorted((setting for setting in settings(results) if setting.complete), key=_rank)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for metric in known_metrics([cell for setting in shown for cell in setting.complete]):
        for name, draw in _figures(shown).items():
            file = folder / f"{metric.replace(' ', '-')}-{name}.svg"
            file.write_text(draw(sweep, shown, metric), encoding="utf-8")
            files.append(file)
    return files


def _rank(setting: Setting) -> tuple[int, str, float]:
    """Return the order of legends and panels: OPTune's ratios, those of other selectors, all prompts, offline."""
    selection = simplest(setting.first.config.selection)
    first = (2 if selection.regenerates else 3) if not selection.ranks else int(not isinstance(selection, Optune))
    return first, selection.type, selection.share


def _figures(shown: Sequence[Setting]) -> dict[str, Callable[[str, Sequence[Setting], str], str]]:
    """Return what draws the figures that these settings can fill, by the ends of the files' names."""
    figures: dict[str, Callable[[str, Sequence[Setting], str], str]] = {
        "by-iteration": _by_iteration,
        "by-time": _by_time,
    }
    if len({setting.first.loss for setting in shown}) > 1:
        figures["dpo-and-wdpo"] = _by_loss
    if len(_betas(shown)) > 2:
        figures["by-beta2"] = _by_beta2
    return figures


def _by_iteration(sweep: str, shown: Sequence[Setting], metric: str) -> str:
    def lines(drawn: Sequence[Setting]) -> list[_Line]:
        return [
            _Line(_key(setting, shown), _at_iterations(setting, metric, 0.04 * (number - (len(drawn) - 1) / 2)))
            for number, setting in enumerate(drawn)
        ]

    title = f"{sweep}: {_long(metric)} by iteration"
    return _panels(title, _grouped(shown, _loss), lines, _policies(shown), metric)


def _by_time(sweep: str, shown: Sequence[Setting], metric: str) -> str:
    longest = max(setting.seconds_at(setting.first.config.iterations) for setting in shown)
    unit, divisor = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)

    def lines(drawn: Sequence[Setting]) -> list[_Line]:
        return [
            _Line(
                _key(setting, shown),
                [(setting.seconds_at(t) / divisor, found) for t, found in _measured(setting, metric)],
            )
            for setting in drawn
        ]

    axis = _Axis(f"{unit}, generation and scoring included", axis_range([0.0, longest / divisor]))
    return _panels(f"{sweep}: {_long(metric)} by training time", _grouped(shown, _loss), lines, axis, metric)


def _by_loss(sweep: str, shown: Sequence[Setting], metric: str) -> str:
    panels = _grouped(shown, lambda setting: ", ".join(filter(None, (setting.first.selection, setting.first.others))))
    losses = list(dict.fromkeys(setting.first.loss for setting in sorted(shown, key=_beta2)))
    keys = {loss: _numbered(loss, number, number) for number, loss in enumerate(losses)}

    def lines(drawn: Sequence[Setting]) -> list[_Line]:
        return [
            _Line(
                keys[setting.first.loss],
                _at_iterations(setting, metric, 0.06 * (losses.index(setting.first.loss) - (len(losses) - 1) / 2)),
            )
            for setting in sorted(drawn, key=_beta2)
        ]

    return _panels(f"{sweep}: {_long(metric)} of DPO and weighted DPO", panels, lines, _policies(shown), metric)


def _by_beta2(sweep: str, shown: Sequence[Setting], metric: str) -> str:
    betas = _betas(shown)
    panels = _grouped(
        (setting for setting in shown if _beta2(setting) < math.inf),
        lambda setting: setting.first.others,
    )

    def lines(drawn: Sequence[Setting]) -> list[_Line]:
        selections = _grouped(drawn, lambda setting: setting.first.selection)
        return [
            _Line(
                _key(along[0], shown),
                [
                    (betas.index(_beta2(setting)) + 0.05 * (number - (len(selections) - 1) / 2), found)
                    for setting in sorted(along, key=_beta2)
                    if (found := _interval(setting, setting.first.config.iterations, metric))
                ],
            )
            for number, along in enumerate(selections.values())
        ]

    ticks = [(float(number), "0 (DPO)" if beta == 0 else f"{beta:g}") for number, beta in enumerate(betas)]
    axis = _Axis("β₂", (-0.35, len(betas) - 0.65), ticks)
    return _panels(f"{sweep}: {_long(metric)} of the last policy by β₂", panels, lines, axis, metric)


def _panels(
    title: str,
    panels: dict[str, list[Setting]],
    lines: Callable[[Sequence[Setting]], list[_Line]],
    axis: _Axis,
    metric: str,
) -> str:
    """Draw one panel a group, with common axes."""
    drawn = {name: lines(group) for name, group in panels.items()}
    par = 50.0 if metric == WIN_SCORE else 0.0
    ends = [end for group in drawn.values() for line in group for _, at in line.points for end in (at.low, at.high)]
    charts = {name: _chart(name, group, axis, axis_range([*ends, par]), par) for name, group in drawn.items()}
    shown = metric if metric == WIN_SCORE else f"change of {_long(metric)}"
    judged = _judged(panels) if metric == WIN_SCORE else []
    return picture(title, charts, subtitle=f"y: {shown}", notes=[*judged, _bars(panels)])


def _chart(name: str, lines: Sequence[_Line], axis: _Axis, y: Range, par: float) -> Chart:
    chart = Chart(
        name,
        x=axis.range,
        y=y,
        x_label=axis.label,
        x_ticks=axis.ticks,
        height=_HEIGHT,
        legend=[line.key for line in lines],
    )
    chart.level(par)
    for line in lines:
        style, points = line.key.style, [(x, estimate.value) for x, estimate in line.points]
        for x, estimate in line.points:
            chart.interval(x, estimate.low, estimate.high, style)
        chart.line(points, style)
        tips = [f"{line.key.text}: {estimate.value:.4g}" for _, estimate in line.points]
        chart.dots(points, style, tips, line.key.symbol or "circle")
    return chart


def _key(setting: Setting, shown: Sequence[Setting]) -> Key:
    """Return a setting's look: colours and symbols are ratios, dashes are selectors, the same in all panels."""
    selection = simplest(setting.first.config.selection)
    label = setting.first.selection
    if not selection.ranks:
        return Key(label, "ink", "star") if selection.regenerates else Key(label, "muted", "cross")
    ranked = [simplest(other.first.config.selection) for other in shown]
    ranked = [other for other in ranked if other.ranks]
    ratios = sorted({other.share for other in ranked})
    selectors = [name for _, name in sorted({(not isinstance(other, Optune), other.type) for other in ranked})]
    return _numbered(label, ratios.index(selection.share), selectors.index(selection.type))


def _numbered(label: str, colour: int, dash: int) -> Key:
    style = f"{COLOURS[colour % len(COLOURS)]} {_DASHES[dash % len(_DASHES)]}".rstrip()
    return Key(label, style, _SYMBOLS[colour % len(_SYMBOLS)])


def _at_iterations(setting: Setting, metric: str, aside: float) -> list[tuple[float, Estimate]]:
    """Return a metric by iteration, a little aside so that the intervals of several settings do not overlap."""
    return [(t + aside, found) for t, found in _measured(setting, metric)]


def _measured(setting: Setting, metric: str) -> list[tuple[int, Estimate]]:
    iterations = range(setting.first.config.iterations + 1)
    return [(t, found) for t in iterations if (found := _interval(setting, t, metric))]


def _interval(setting: Setting, t: int, metric: str) -> Estimate | None:
    """Return a metric of π_t: over seeds ± a standard deviation; with one seed 95 % over prompts."""
    over_seeds = setting.at(t, metric)
    if over_seeds is None:
        return None
    mean, deviation = over_seeds.mean, over_seeds.deviation
    if deviation is not None:
        return Estimate(mean, mean - deviation, mean + deviation)
    (only,) = (found for cell in setting.complete if (found := cell.points[t].metrics.get(metric)))
    return only


def _bars(panels: dict[str, list[Setting]]) -> str:
    seeds = sorted({len(setting.complete) for drawn in panels.values() for setting in drawn})
    number = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
    if seeds == [1]:
        return "bars: 95 % interval over prompts; one seed"
    one = "; with one seed 95 % over prompts" if seeds[0] == 1 else ""
    return f"bars: ± standard deviation over {number} seeds{one}"


def _long(metric: str) -> str:
    return metric if metric == WIN_SCORE else f"held-out {metric} reward"


def _judged(panels: dict[str, list[Setting]]) -> list[str]:
    cells = [cell for drawn in panels.values() for setting in drawn for cell in setting.complete]
    return [f"win score {text}" for text in sorted({cell.compared for cell in cells if cell.compared})]


def _policies(shown: Sequence[Setting]) -> _Axis:
    """Return the axis of policies: π_t comes after iteration t - 1."""
    last = max(setting.first.config.iterations for setting in shown)
    ticks = integer_ticks(last, lambda t: policy(0) if t == 0 else str(t - 1))
    return _Axis("policy after iteration", (-0.35, last + 0.35), ticks)


def _loss(setting: Setting) -> str:
    return ", ".join(filter(None, (setting.first.loss, setting.first.others)))


def _beta2(setting: Setting) -> float:
    """Return β₂ for the order; losses without β₂ come last."""
    loss = setting.first.config.training.loss
    return loss.beta2 if isinstance(loss, WeightedDpo) else math.inf


def _betas(shown: Sequence[Setting]) -> list[float]:
    """Return the values of β₂, ascending."""
    return sorted({beta2 for setting in shown if (beta2 := _beta2(setting)) < math.inf})


def _grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
