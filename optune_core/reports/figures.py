"""The figures of a run's page, three of which an iteration's page in Prefect's UI shows as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from optune_core.reports.facts import RunFacts
from optune_core.reports.svg import COLOURS, Chart, Key, Points, Ticks, axis_range, integer_ticks, short
from optune_core.statistics import Values
from optune_core.words import percent, policy, signed

PAPER_SHARES = {"generate": 0.718, "score": 0.001, "train": 0.281}
"""Table 1: full online DPO."""
PAPER_GAIN_SHARE = 0.686
"""Figure 2: share of the bottom half in the gain from iteration 1 to 2 of full online DPO."""

_BINS = 30
_MOST_POINTS = 240
"""Points of a training curve over all iterations."""
_CURVES = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")

_STAGES = (Key("generation", "c1"), Key("rewarding", "c2"), Key("training", "c3"), Key("rank and merge", "c4"))
_HALVES = (Key("bottom half", "c1"), Key("top half", "c4"))
_SIDES = (Key("chosen", "c1"), Key("rejected", "c2"))
_HELD_OUT = Key("the policy, on held-out prompts", "c3")
_AGES = (Key("fresh", "age0"), Key("1 iteration old", "age1"), Key("2", "age2"), Key("3 and more", "age3"))


def time_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of generation (with the engines' start), scoring, training, and ranking and merging."""
    total = sum(seconds.values()) or 1.0
    return {
        "generate": (seconds["start engine"] + seconds["generate"]) / total,
        "score": seconds["score"] / total,
        "train": seconds["train"] / total,
        "rank and merge": seconds["rank and merge"] / total,
    }


def time_figure(run: RunFacts) -> Chart:
    """Draw Table 1 as bars: the paper's, and each iteration's."""
    return time_chart({each.iteration: each.seconds for each in run.iterations})


def time_chart(seconds: Mapping[int, Mapping[str, float]]) -> Chart:
    """Draw Table 1 as bars: the paper's, and those of iterations with these seconds by stage."""
    rows = [("paper", PAPER_SHARES)] + [(f"t = {t}", time_shares(taken)) for t, taken in seconds.items()]
    return _stacked(
        "Share of each stage in the time of an iteration",
        [(name, list(shares.values())) for name, shares in rows],
        _STAGES,
        percent,
        end=1.0,
        x_ticks=[(share, f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)],
    )


def held_out_figure(run: RunFacts, reward: str) -> Chart:
    """Draw the change of a held-out reward from π_0 to each π_t, with its interval."""
    rows = [(each.iteration, each.change[reward]) for each in run.held_out if reward in each.change]
    bounds = [row[end] for _, row in rows for end in ("low", "high")]
    chart = Chart(
        f"Held-out {reward} reward by policy, change from π₀",
        x=(-0.25, rows[-1][0] + 0.25),
        y=axis_range(bounds, include=[0.0]),
        x_ticks=integer_ticks(rows[-1][0], policy),
    )
    style = "c1" if reward == "proxy" else "c4"
    chart.level(0.0)
    for t, row in rows:
        chart.interval(t, row["low"], row["high"], style)
    points = [(float(t), float(row["difference"])) for t, row in rows]
    chart.line(points, style)
    chart.dots(points, style, [f"{policy(t)}: {signed(row['difference'])}" for t, row in rows])
    return chart


def gain_figure(run: RunFacts) -> Chart:
    """Draw Figure 2 for each iteration: reward gained in the lower and in the upper half."""
    rows = [(each.iteration, each.gains) for each in run.iterations if each.gains is not None]
    chart = Chart(
        "Reward gained in the bottom and the top half of the prompts",
        x=(0.4, rows[-1][0] + 0.6),
        y=axis_range([gain for _, gains in rows for gain in gains], include=[0.0]),
        x_ticks=integer_ticks(rows[-1][0], _iteration, first=1),
        legend=_HALVES,
    )
    for t, gains in rows:
        for sides, gain, key in zip(((t - 0.3, t - 0.02), (t + 0.02, t + 0.3)), gains, _HALVES, strict=True):
            chart.bar(sides, (0, gain), key.style, f"t = {t}, {key.text}: {signed(gain, 2)}")
    if chart.y[0] < 0:
        chart.level(0.0, "axis")
    return chart


def reward_figure(run: RunFacts) -> Chart:
    """Draw the distributions of the chosen and the rejected reward, a row an iteration."""
    return reward_chart(
        {each.iteration: (each.pairs.chosen_rewards, each.pairs.rejected_rewards) for each in run.iterations}
    )


def reward_chart(rewards: Mapping[int, tuple[Values, Values]]) -> Chart:
    """Draw the distributions of the chosen and the rejected rewards of iterations.

    Args:
        rewards: iteration → (chosen, rejected) rewards of its pairs.
    """
    return _ridges("Rewards of the chosen and the rejected responses", rewards, _SIDES)


def gap_figure(run: RunFacts) -> Chart:
    """Draw the distributions of the reward gap, a row an iteration."""
    rows = {each.iteration: [each.pairs.gaps] for each in run.iterations}
    return _ridges("Reward gap, chosen minus rejected", rows, [Key("pairs", "c3")])


def length_figure(run: RunFacts) -> Chart:
    """Draw mean response lengths by iteration: chosen, rejected, and the policy's on held-out prompts."""
    lines: list[tuple[Key, Points]] = [
        (key, [(each.iteration, each.metrics[name]) for each in run.iterations if each.metrics[name] is not None])
        for key, name in zip(_SIDES, ("tokens/chosen", "tokens/rejected"), strict=True)
    ]
    if run.held_out:
        held_out = [(each.iteration, each.answers.mean_tokens) for each in run.held_out if each.answers is not None]
        lines.append((_HELD_OUT, held_out))
    return _lines("Mean response length in tokens", lines, zero=True)


def correlation_figure(run: RunFacts) -> Chart:
    """Draw Pearson's r of reward and length by iteration, for chosen and rejected responses."""
    rows = {each.iteration: each.correlations for each in run.iterations}
    return _lines("Correlation of reward and response length", _by_side(rows), y=(-1.06, 1.06))


def ratio_figure(run: RunFacts) -> Chart:
    """Draw the mean log-ratio of policy and reference at the end of each iteration, for both responses of the pairs."""
    rows = {each.iteration: each.log_ratios for each in run.iterations}
    return _lines("Mean log-ratio of policy and reference, nats a response", _by_side(rows), zero=True)


def age_figure(run: RunFacts) -> Chart:
    """Draw the pairs of each replay set by their age."""
    return age_chart({each.iteration: each.pairs.made for each in run.iterations})


def age_chart(made: Mapping[int, Mapping[int, int]]) -> Chart:
    """Draw the pairs of replay sets by their age.

    Args:
        made: iteration → iteration in which pairs of its replay set were made → how many.
    """
    rows = []
    for t, counts in made.items():
        ages = [0] * len(_AGES)
        for origin, count in counts.items():
            ages[min(t - origin, len(_AGES) - 1)] += count
        rows.append((_iteration(t), ages))
    end = max(sum(ages) for _, ages in rows) or 1
    return _stacked("Age of the pairs in each replay set", rows, _AGES, lambda count: f"{count:g} pairs", end=end)


def training_figures(run: RunFacts) -> list[tuple[str, Chart]]:
    """Draw metrics by optimizer step over all iterations, dotted lines between these; long logs are averaged.

    Returns:
        (metric, its curve), for the metrics that the loss has.
    """
    begins = np.cumsum([0, *(len(each.log) for each in run.iterations)]).tolist()
    steps = [step for each in run.iterations for step in each.log]
    figures = []
    for name in _CURVES:
        values = np.array([step.get(name, np.nan) for step in steps], float)
        points = [(x, y) for x, y in thinned(values, _MOST_POINTS) if np.isfinite(y)]
        if not points:
            continue
        chart = Chart(
            f"{name} by optimizer step",
            x=(0, len(steps)),
            y=axis_range([y for _, y in points]),
            x_label="optimizer step",
            height=160,
        )
        for begin in begins[1:-1]:
            chart.upright(begin)
        chart.line(points, "c3")
        if len(points) == 1:
            chart.dots(points, "c3")
        figures.append((name, chart))
    return figures


def comparison_figure(runs: Sequence[RunFacts], reward: str) -> Chart:
    """Draw the held-out change against the seconds spent until then, a line a run."""
    lines = []
    for run in runs:
        spent = np.cumsum([0.0, *(sum(each.seconds.values()) for each in run.iterations)]).tolist()
        lines.append([(spent[e.iteration], e.change[reward]) for e in run.held_out if reward in e.change][: len(spent)])
    bounds = [row[end] for rows in lines for _, row in rows for end in ("low", "high")]
    longest = max((x for rows in lines for x, _ in rows), default=1.0)
    chart = Chart(
        f"Held-out {reward} reward against time",
        x=(-0.02 * longest, 1.04 * longest or 1),
        y=axis_range(bounds, include=[0.0]),
        x_label="seconds of the stages",
        height=220,
        legend=[Key(run.run, COLOURS[number % len(COLOURS)]) for number, run in enumerate(runs)],
    )
    chart.level(0.0)
    for key, rows in zip(chart.legend, lines, strict=True):
        points = [(float(x), float(row["difference"])) for x, row in rows]
        chart.line(points, key.style)
        chart.dots(points, key.style, [f"{key.text}: {signed(y)} after {x:.0f} s" for x, y in points])
        if rows:
            chart.interval(rows[-1][0], rows[-1][1]["low"], rows[-1][1]["high"], key.style)
    return chart


def thinned(values: Values, most: int) -> list[tuple[float, float]]:
    """Return (step, value), steps from 1, at most `most`: means over neighbours where there are more values."""
    width = max(1, -(-len(values) // most))
    cuts = range(0, len(values), width)
    return [
        (first + (len(part) + 1) / 2, float(part.mean()))
        for first in cuts
        if len(part := values[first : first + width])
    ]


def _stacked(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    legend: Sequence[Key],
    written: Callable[[float], str],
    *,
    end: float,
    x_ticks: Ticks | None = None,
) -> Chart:
    """Draw a horizontal bar a row, made of parts side by side; the legend names the parts."""
    chart = Chart(
        title,
        x=(0, end),
        y=(-len(rows) + 0.4, 0.6),
        x_ticks=x_ticks,
        y_ticks=[(-index, name) for index, (name, _) in enumerate(rows)],
        height=46 + 24 * len(rows),
        left=48,
        legend=legend,
    )
    for index, (name, parts) in enumerate(rows):
        reached = 0.0
        for key, part in zip(legend, parts, strict=False):
            chart.bar(
                (reached, reached + part),
                (-index - 0.32, -index + 0.32),
                key.style,
                f"{name}, {key.text}: {written(part)}",
            )
            reached += part
    return chart


def _ridges(title: str, rows: Mapping[int, Sequence[Values]], legend: Sequence[Key]) -> Chart:
    """Draw histograms over one axis, a row an iteration; each row is scaled to its own highest bin.

    The first of the legend is in front of the others.
    """
    everything = np.concatenate([values for columns in rows.values() for values in columns])
    low, high = axis_range(
        everything.tolist() if len(everything) < 2 else [float(everything.min()), float(everything.max())]
    )
    edges = np.linspace(low, high, _BINS + 1)
    chart = Chart(
        title,
        x=(low, high),
        y=(-len(rows) + 1, 1.0),
        y_ticks=[(-index, _iteration(t)) for index, t in enumerate(rows)],
        height=50 + max(46 * len(rows), 92),
        left=48,
        legend=legend,
    )
    for index, columns in enumerate(rows.values()):
        counts = [np.histogram(values, bins=edges)[0] for values in columns]
        top = max(int(count.max()) for count in counts) or 1
        for count, key in reversed(list(zip(counts, legend, strict=True))):
            chart.area(edges.tolist(), (0.85 * count / top).tolist(), -index, key.style)
    return chart


def _by_side(rows: Mapping[int, Mapping[str, float | None]]) -> list[tuple[Key, Points]]:
    """Return the lines of a number that chosen and rejected responses have, by iteration."""
    return [
        (key, [(t, value) for t, sides in rows.items() if (value := sides[key.text]) is not None]) for key in _SIDES
    ]


def _lines(
    title: str, lines: Sequence[tuple[Key, Points]], *, y: tuple[float, float] | None = None, zero: bool = False
) -> Chart:
    values = [value for _, points in lines for _, value in points]
    last = max((x for _, points in lines for x, _ in points), default=0)
    chart = Chart(
        title,
        x=(-0.3, last + 0.3),
        y=y or axis_range(values, include=[0.0] if zero else []),
        x_ticks=integer_ticks(int(last), _iteration),
        legend=[key for key, _ in lines],
    )
    chart.level(0.0)
    for key, points in lines:
        chart.line(points, key.style)
        chart.dots(points, key.style, [f"t = {x:g}: {short(value)}" for x, value in points])
    return chart


def _iteration(t: int) -> str:
    return f"t = {t}"
