"""The paper's figures from the cells of a sweep: by iteration and ratio, by training time, DPO against wDPO, β₂."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optune_core.losses.wdpo import WeightedDpo
from optune_core.selection.everything import simplest
from optune_core.selection.optune import Optune
from optune_core.sweep.results import WIN_SCORE, CellResult, Setting, known_metrics, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, told apart by colour-blind readers too; lines and markers say the same once more."""
_FULL, _OFFLINE, _BASELINE, _GRID = "#000000", "#767676", "#8c8c8c", "#d9d9d9"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
_COLUMNS = 3

Interval = tuple[float, float, float]
"""Mean, low, high."""


def draw_figures(sweep: str, results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write the figures as PNG files: for the win score, or for each held-out reward where nothing was compared.

    Shown are the settings of which at least one cell is whole; none where there is no such setting.

    Args:
        folder: made if it is not there; figures of the same name are replaced.

    Returns:
        The files.
    """
    shown = sorted((setting for setting in settings(results) if setting.whole), key=_rank)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for metric in known_metrics([cell for setting in shown for cell in setting.whole]):
        for name, draw in _figures(shown).items():
            figure = draw(sweep, shown, metric)
            file = folder / f"{metric.replace(' ', '-')}-{name}.png"
            figure.savefig(file, format="png")
            files.append(file)
    return files


def _rank(setting: Setting) -> tuple[int, str, float]:
    """OPTune's ratios, those of other selectors, all prompts, offline: the order of legends and panels."""
    selection = simplest(setting.first.config.selection)
    first = (2 if selection.regenerates else 3) if not selection.ranks else int(not isinstance(selection, Optune))
    return first, selection.type, selection.share


def _figures(shown: Sequence[Setting]) -> dict[str, Callable[[str, Sequence[Setting], str], Figure]]:
    """The figures that these settings can fill, by the ends of their files' names."""
    figures: dict[str, Callable[[str, Sequence[Setting], str], Figure]] = {
        "by-iteration": _by_iteration,
        "by-time": _by_time,
    }
    if len({setting.first.loss for setting in shown}) > 1:
        figures["dpo-and-wdpo"] = _by_loss
    if len(_betas(shown)) > 2:
        figures["by-beta2"] = _by_beta2
    return figures


def _by_iteration(sweep: str, shown: Sequence[Setting], metric: str) -> Figure:
    panels = _grouped(shown, _loss)

    def draw(axes: Axes, drawn: Sequence[Setting]) -> None:
        for number, setting in enumerate(drawn):
            aside = 0.04 * (number - (len(drawn) - 1) / 2)
            points = [(t + aside, found) for t in _iterations(setting) if (found := _interval(setting, t, metric))]
            _line(axes, points, **_look(setting, shown))
        _whole_numbers(axes, drawn)

    title = f"{sweep}: {_long(metric)} by iteration"
    return _panels(title, panels, draw, "policy after iteration", metric)


def _by_time(sweep: str, shown: Sequence[Setting], metric: str) -> Figure:
    panels = _grouped(shown, _loss)
    longest = max(setting.seconds_at(setting.first.config.iterations) for setting in shown)
    unit, divisor = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)

    def draw(axes: Axes, drawn: Sequence[Setting]) -> None:
        for setting in drawn:
            points = [
                (setting.seconds_at(t) / divisor, found)
                for t in _iterations(setting)
                if (found := _interval(setting, t, metric))
            ]
            _line(axes, points, **_look(setting, shown))

    title = f"{sweep}: {_long(metric)} by training time"
    return _panels(title, panels, draw, f"{unit}, generation and scoring included", metric)


def _by_loss(sweep: str, shown: Sequence[Setting], metric: str) -> Figure:
    panels = _grouped(shown, lambda setting: ", ".join(filter(None, (setting.first.selection, setting.first.others))))
    losses = list(dict.fromkeys(setting.first.loss for setting in sorted(shown, key=_beta2)))

    def draw(axes: Axes, drawn: Sequence[Setting]) -> None:
        for setting in sorted(drawn, key=_beta2):
            number = losses.index(setting.first.loss)
            aside = 0.06 * (number - (len(losses) - 1) / 2)
            points = [(t + aside, found) for t in _iterations(setting) if (found := _interval(setting, t, metric))]
            look = {"color": _COLOURS[number % 6], "linestyle": _LINES[number % 4], "marker": _MARKERS[number % 4]}
            _line(axes, points, label=setting.first.loss, **look)
        _whole_numbers(axes, drawn)

    title = f"{sweep}: {_long(metric)} of DPO and weighted DPO"
    return _panels(title, panels, draw, "policy after iteration", metric)


def _by_beta2(sweep: str, shown: Sequence[Setting], metric: str) -> Figure:
    betas = _betas(shown)
    panels = _grouped(
        (setting for setting in shown if _beta2(setting) < math.inf),
        lambda setting: setting.first.others,
    )

    def draw(axes: Axes, drawn: Sequence[Setting]) -> None:
        lines = _grouped(drawn, lambda setting: setting.first.selection)
        for number, along in enumerate(lines.values()):
            aside = 0.05 * (number - (len(lines) - 1) / 2)
            points = [
                (betas.index(_beta2(setting)) + aside, found)
                for setting in sorted(along, key=_beta2)
                if (found := _interval(setting, setting.first.config.iterations, metric))
            ]
            _line(axes, points, **_look(along[0], shown))
        axes.set_xticks(range(len(betas)), ["0 (DPO)" if beta == 0 else f"{beta:g}" for beta in betas])

    return _panels(f"{sweep}: {_long(metric)} of the last policy by β₂", panels, draw, "β₂", metric)


def _panels(
    title: str,
    panels: dict[str, list[Setting]],
    draw: Callable[[Axes, Sequence[Setting]], None],
    x_name: str,
    metric: str,
) -> Figure:
    """One panel a group, with common axes and one legend beside them."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.4 + 3.1 * columns, 1.2 + 2.7 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes, (name, drawn) in zip(grid, panels.items(), strict=False):
        axes.axhline(50.0 if metric == WIN_SCORE else 0.0, color=_BASELINE, linewidth=0.8)
        draw(axes, drawn)
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelbottom=True)
        handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    judged = _judged(panels) if metric == WIN_SCORE else []
    width = 28 + 38 * columns
    figure.suptitle("\n".join(part for text in [title, *judged] for part in textwrap.wrap(text, width)), fontsize=10)
    figure.supxlabel(f"{x_name}\n{_bars(panels)}", fontsize=9)
    figure.supylabel(metric if metric == WIN_SCORE else f"change of {_long(metric)}", fontsize=9)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9)
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, Interval]], **look: Any) -> None:
    means = [mean for _, (mean, _, _) in points]
    errors = [[mean - low for _, (mean, low, _) in points], [high - mean for _, (mean, _, high) in points]]
    axes.errorbar(
        [x for x, _ in points], means, yerr=errors, linewidth=1.4, markersize=4.5, elinewidth=0.9, capsize=2.5, **look
    )


def _look(setting: Setting, shown: Sequence[Setting]) -> dict[str, Any]:
    """Colours are ratios, lines and markers are selectors, the same in all panels."""
    selection = simplest(setting.first.config.selection)
    label = setting.first.selection
    if not selection.ranks:
        colour = _FULL if selection.regenerates else _OFFLINE
        return {"color": colour, "linestyle": "-", "marker": "*" if colour == _FULL else "x", "label": label}
    ranked = [simplest(other.first.config.selection) for other in shown]
    ranked = [other for other in ranked if other.ranks]
    ratios = sorted({other.share for other in ranked})
    selectors = [name for _, name in sorted({(not isinstance(other, Optune), other.type) for other in ranked})]
    line = selectors.index(selection.type) % 4
    return {
        "color": _COLOURS[ratios.index(selection.share) % 6],
        "linestyle": _LINES[line],
        "marker": _MARKERS[line],
        "label": label,
    }


def _interval(setting: Setting, t: int, metric: str) -> Interval | None:
    """Over seeds ± a standard deviation; with one seed 95 % over prompts."""
    over_seeds = setting.at(t, metric)
    if over_seeds is None:
        return None
    if over_seeds.deviation is not None:
        return over_seeds.mean, over_seeds.mean - over_seeds.deviation, over_seeds.mean + over_seeds.deviation
    (only,) = (found for cell in setting.whole if (found := cell.points[t].metrics.get(metric)))
    return only.value, only.low, only.high


def _bars(panels: dict[str, list[Setting]]) -> str:
    seeds = sorted({len(setting.whole) for drawn in panels.values() for setting in drawn})
    number = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
    if seeds == [1]:
        return "bars: 95 % interval over prompts; one seed"
    one = "; with one seed 95 % over prompts" if seeds[0] == 1 else ""
    return f"bars: ± standard deviation over {number} seeds{one}"


def _long(metric: str) -> str:
    return metric if metric == WIN_SCORE else f"held-out {metric} reward"


def _judged(panels: dict[str, list[Setting]]) -> list[str]:
    cells = [cell for drawn in panels.values() for setting in drawn for cell in setting.whole]
    return sorted({cell.compared for cell in cells if cell.compared})


def _whole_numbers(axes: Axes, drawn: Sequence[Setting]) -> None:
    """Ticks at the policies: π_t comes after iteration t - 1."""
    ticks = range(max(setting.first.config.iterations for setting in drawn) + 1)
    axes.set_xticks(list(ticks), ["π₀", *[str(t - 1) for t in ticks[1:]]])
    axes.set_xlim(-0.35, ticks[-1] + 0.35)


def _iterations(setting: Setting) -> range:
    return range(setting.first.config.iterations + 1)


def _loss(setting: Setting) -> str:
    return ", ".join(filter(None, (setting.first.loss, setting.first.others)))


def _beta2(setting: Setting) -> float:
    """For order; losses without β₂ come last."""
    loss = setting.first.config.training.loss
    return loss.beta2 if isinstance(loss, WeightedDpo) else math.inf


def _betas(shown: Sequence[Setting]) -> list[float]:
    """The values of β₂, ascending."""
    return sorted({beta2 for setting in shown if (beta2 := _beta2(setting)) < math.inf})


def _grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
