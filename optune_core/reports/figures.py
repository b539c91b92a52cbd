"""The figures of a run's page, as inline SVG. What they show is said in the page's text beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from optune_core.reports.facts import Rewards, Row, RunFacts
from optune_core.reports.svg import Chart, Points, short, spread
from optune_core.words import percent, policy, signed

PAPER_SHARES = {"generate": 0.718, "score": 0.001, "train": 0.281}
"""Table 1: full online DPO."""
PAPER_GAIN_SHARES = (0.686, 0.314)
"""Figure 2: bottom and top half, from iteration 1 to 2 of full online DPO."""

_BINS = 30
_MOST_POINTS = 240
"""Of a training curve, over the whole run."""
_CURVES = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")


def time_shares(seconds: Row) -> dict[str, float]:
    """Shares of generation (with the engines' start), scoring, training, and ranking and merging."""
    whole = sum(seconds.values()) or 1.0
    return {
        "generate": (seconds["start engine"] + seconds["generate"]) / whole,
        "score": seconds["score"] / whole,
        "train": seconds["train"] / whole,
        "rank and merge": seconds["rank and merge"] / whole,
    }


def time_figure(run: RunFacts) -> Markup:
    """Table 1 as bars: the paper's, and each iteration's."""
    rows = [("paper", PAPER_SHARES)] + [(f"t = {each.iteration}", time_shares(each.seconds)) for each in run.iterations]
    chart = Chart(
        "Share of each stage in the time of an iteration",
        x=(0, 1),
        y=(-len(rows) + 0.4, 0.6),
        x_ticks=[(share, f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)],
        y_ticks=[(-index, name) for index, (name, _) in enumerate(rows)],
        height=46 + 24 * len(rows),
        left=48,
    )
    for index, (name, shares) in enumerate(rows):
        reached = 0.0
        for number, (stage, share) in enumerate(shares.items(), start=1):
            chart.bar(
                (reached, reached + share),
                (-index - 0.32, -index + 0.32),
                f"c{number}",
                f"{name}, {stage}: {percent(share)}",
            )
            reached += share
    return chart.draw()


def held_out_figure(run: RunFacts, reward: str) -> Markup:
    """Change of a held-out reward from π_0 to each π_t, with its interval."""
    rows = [(each.iteration, each.change[reward]) for each in run.held_out if reward in each.change]
    bounds = [row[end] for _, row in rows for end in ("low", "high")]
    chart = Chart(
        f"Held-out {reward} reward by policy, change from π₀",
        x=(-0.25, rows[-1][0] + 0.25),
        y=spread(bounds, include=[0.0]),
        x_ticks=_whole(rows[-1][0], policy),
    )
    style = "c1" if reward == "proxy" else "c4"
    chart.level(0.0)
    for t, row in rows:
        chart.interval(t, row["low"], row["high"], style)
    points = [(float(t), float(row["difference"])) for t, row in rows]
    chart.line(points, style)
    chart.dots(points, style, [f"{policy(t)}: {signed(row['difference'])}" for t, row in rows])
    return chart.draw()


def gain_figure(run: RunFacts) -> Markup:
    """Figure 2 for each iteration: reward gained in the lower and in the upper half."""
    rows = [(each.iteration, each.gains) for each in run.iterations if each.gains is not None]
    chart = Chart(
        "Reward gained in the bottom and the top half of the prompts",
        x=(0.4, rows[-1][0] + 0.6),
        y=spread([gain for _, gains in rows for gain in gains], include=[0.0]),
        x_ticks=_whole(rows[-1][0], lambda t: f"t = {t}", first=1),
    )
    for t, (bottom, top) in rows:
        chart.bar((t - 0.3, t - 0.02), (0, bottom), "c1", f"t = {t}, bottom half: {signed(bottom, 2)}")
        chart.bar((t + 0.02, t + 0.3), (0, top), "c4", f"t = {t}, top half: {signed(top, 2)}")
    if chart.y[0] < 0:
        chart.level(0.0, "axis")
    return chart.draw()


def reward_figure(run: RunFacts) -> Markup:
    """Distributions of the chosen and the rejected reward, a row an iteration."""
    return _ridges(
        "Rewards of the chosen and the rejected responses",
        [(each.iteration, [each.pairs.rejected_rewards, each.pairs.chosen_rewards]) for each in run.iterations],
        ["c2", "c1"],
    )


def gap_figure(run: RunFacts) -> Markup:
    """Distributions of the reward gap, a row an iteration."""
    return _ridges(
        "Reward gap, chosen minus rejected", [(each.iteration, [each.pairs.gaps]) for each in run.iterations], ["c3"]
    )


def length_figure(run: RunFacts) -> Markup:
    """Mean response lengths by iteration: chosen, rejected, and of π_t on held-out prompts."""
    lines: list[tuple[str, Points]] = [
        (style, [(each.iteration, each.metrics[name]) for each in run.iterations if each.metrics[name] is not None])
        for style, name in (("c1", "tokens/chosen"), ("c2", "tokens/rejected"))
    ]
    lines.append(("c3", [(e.iteration, e.answers.mean_tokens) for e in run.held_out if e.answers is not None]))
    return _lines("Mean response length in tokens", lines, zero=True)


def correlation_figure(run: RunFacts) -> Markup:
    """Pearson's r of reward and length by iteration, for chosen and rejected responses."""
    lines: list[tuple[str, Points]] = [
        (style, [(each.iteration, r) for each in run.iterations if (r := each.correlations[side]) is not None])
        for style, side in (("c1", "chosen"), ("c2", "rejected"))
    ]
    return _lines("Correlation of reward and response length", lines, y=(-1.06, 1.06))


def ratio_figure(run: RunFacts) -> Markup:
    """Mean log-ratio of policy and reference at the end of each iteration, for chosen and rejected responses."""
    lines: list[tuple[str, Points]] = [
        (style, [(each.iteration, r) for each in run.iterations if (r := each.log_ratios[side]) is not None])
        for style, side in (("c1", "chosen"), ("c2", "rejected"))
    ]
    return _lines("Mean log-ratio of policy and reference, nats a response", lines, zero=True)


def age_figure(run: RunFacts) -> Markup:
    """Pairs of each replay set by their age."""
    most = max(sum(each.pairs.made.values()) for each in run.iterations)
    last = run.iterations[-1].iteration
    chart = Chart(
        "Age of the pairs in each replay set",
        x=(-0.6, last + 0.6),
        y=(0, 1.06 * most or 1),
        x_ticks=_whole(last, lambda t: f"t = {t}"),
    )
    for each in run.iterations:
        base = 0
        for made, count in sorted(each.pairs.made.items(), reverse=True):
            age = each.iteration - made
            tip = f"t = {each.iteration}: {count} pairs of age {age}"
            chart.bar((each.iteration - 0.32, each.iteration + 0.32), (base, base + count), f"age{min(age, 3)}", tip)
            base += count
    return chart.draw()


def training_figures(run: RunFacts) -> list[tuple[str, Markup]]:
    """(metric, curve) by optimizer step over the whole run, long logs averaged; guides where iterations begin."""
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
            y=spread([y for _, y in points]),
            x_label="optimizer step",
            height=160,
        )
        for begin in begins[1:-1]:
            chart.upright(begin)
        chart.line(points, "c3")
        if len(points) == 1:
            chart.dots(points, "c3")
        figures.append((name, chart.draw()))
    return figures


def comparison_figure(runs: Sequence[RunFacts], reward: str) -> Markup:
    """Held-out change against the seconds spent until then, a line a run."""
    lines = []
    for run in runs:
        spent = np.cumsum([0.0, *(sum(each.seconds.values()) for each in run.iterations)]).tolist()
        rows = [(spent[e.iteration], e.change[reward]) for e in run.held_out if reward in e.change][: len(spent)]
        lines.append(rows)
    bounds = [row[end] for rows in lines for _, row in rows for end in ("low", "high")]
    longest = max((x for rows in lines for x, _ in rows), default=1.0)
    chart = Chart(
        f"Held-out {reward} reward against time",
        x=(-0.02 * longest, 1.04 * longest or 1),
        y=spread(bounds, include=[0.0]),
        x_label="seconds of the stages",
        height=220,
    )
    chart.level(0.0)
    for number, (run, rows) in enumerate(zip(runs, lines, strict=True)):
        style = f"c{number % 6 + 1}"
        points = [(float(x), float(row["difference"])) for x, row in rows]
        chart.line(points, style)
        chart.dots(points, style, [f"{run.run}: {signed(y)} after {x:.0f} s" for x, y in points])
        if rows:
            chart.interval(rows[-1][0], rows[-1][1]["low"], rows[-1][1]["high"], style)
    return chart.draw()


def thinned(values: Rewards, most: int) -> list[tuple[float, float]]:
    """(step, value), steps from 1; where there are more than `most`, means of as many neighbours as it takes."""
    width = max(1, -(-len(values) // most))
    cuts = range(0, len(values), width)
    return [
        (first + (len(part) + 1) / 2, float(part.mean()))
        for first in cuts
        if len(part := values[first : first + width])
    ]


def _ridges(title: str, rows: Sequence[tuple[int, list[Rewards]]], styles: list[str]) -> Markup:
    """Histograms over one axis, a row an iteration; each row is scaled to its own highest bin."""
    everything = np.concatenate([values for _, columns in rows for values in columns])
    low, high = spread(
        everything.tolist() if len(everything) < 2 else [float(everything.min()), float(everything.max())]
    )
    edges = np.linspace(low, high, _BINS + 1)
    chart = Chart(
        title,
        x=(low, high),
        y=(-len(rows) + 1, 1.0),
        y_ticks=[(-index, f"t = {t}") for index, (t, _) in enumerate(rows)],
        height=50 + 46 * len(rows),
        left=48,
    )
    for index, (_, columns) in enumerate(rows):
        counts = [np.histogram(values, bins=edges)[0] for values in columns]
        top = max(int(count.max()) for count in counts) or 1
        for count, style in zip(counts, styles, strict=True):
            chart.area(edges.tolist(), (0.85 * count / top).tolist(), -index, style)
    return chart.draw()


def _lines(
    title: str, lines: Sequence[tuple[str, Points]], *, y: tuple[float, float] | None = None, zero: bool = False
) -> Markup:
    values = [value for _, points in lines for _, value in points]
    last = max((x for _, points in lines for x, _ in points), default=0)
    chart = Chart(
        title,
        x=(-0.3, last + 0.3),
        y=y or spread(values, include=[0.0] if zero else []),
        x_ticks=_whole(int(last), lambda t: f"t = {t}"),
    )
    chart.level(0.0)
    for style, points in lines:
        chart.line(points, style)
        chart.dots(points, style, [f"t = {x:g}: {short(value)}" for x, value in points])
    return chart.draw()


def _whole(last: int, text: Callable[[int], str], first: int = 0) -> list[tuple[float, str]]:
    """A tick at whole numbers, at most eight of them."""
    step = max(1, -(-(last - first + 1) // 8))
    return [(t, text(t)) for t in range(first, last + 1, step)]
