"""Inline SVG for a page: one chart with axes, and marks in its coordinates. Colours are the page's CSS classes, so one
drawing serves light and dark. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 32

Range = tuple[float, float]
Points = Sequence[tuple[float, float]]


@dataclass
class Chart:
    """A plot with linear axes.

    Args:
        title: for those who do not see it.
        x, y: (low, high) of the axes.
        x_label: below the axis.
        x_ticks, y_ticks: (value, text); default: round numbers.
        height: of the whole picture; it is WIDTH wide and scales with the page.
    """

    title: str
    x: Range
    y: Range
    x_label: str = ""
    x_ticks: Sequence[tuple[float, str]] | None = None
    y_ticks: Sequence[tuple[float, str]] | None = None
    height: int = 190
    left: int = _LEFT
    _marks: list[Markup] = field(default_factory=list)

    def line(self, points: Points, style: str) -> None:
        """A line through points."""
        if len(points) > 1:
            path = " ".join(f"{_n(self._x(x))},{_n(self._y(y))}" for x, y in points)
            self._marks.append(Markup('<polyline class="line {}" points="{}"/>').format(style, path))

    def dots(self, points: Points, style: str, tips: Sequence[str] = ()) -> None:
        """A dot at each point; `tips` are shown beside the pointer."""
        for index, (x, y) in enumerate(points):
            tip = Markup("<title>{}</title>").format(tips[index]) if tips else ""
            self._marks.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3">{}</circle>').format(
                    style, _n(self._x(x)), _n(self._y(y)), tip
                )
            )

    def interval(self, x: float, low: float, high: float, style: str) -> None:
        """A vertical error bar."""
        path = f"M{_n(self._x(x))},{_n(self._y(low))}V{_n(self._y(high))}"
        self._marks.append(Markup('<path class="interval {}" d="{}"/>').format(style, path))

    def bar(self, x: Range, y: Range, style: str, tip: str = "") -> None:
        """A rectangle between two corners."""
        (x0, x1), (y0, y1) = x, y
        left, top = self._x(min(x0, x1)), self._y(max(y0, y1))
        width, height = self._x(max(x0, x1)) - left, self._y(min(y0, y1)) - top
        self._marks.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
                style, _n(left), _n(top), _n(width), _n(height), Markup("<title>{}</title>").format(tip) if tip else ""
            )
        )

    def area(self, edges: Sequence[float], heights: Sequence[float], base: float, style: str) -> None:
        """A histogram: `heights` over the spaces between `edges`, standing on `base`."""
        path = f"M{_n(self._x(edges[0]))},{_n(self._y(base))}"
        for left, right, height in zip(edges, edges[1:], heights, strict=False):
            path += f"L{_n(self._x(left))},{_n(self._y(base + height))}H{_n(self._x(right))}"
        path += f"V{_n(self._y(base))}Z"
        self._marks.append(Markup('<path class="area {}" d="{}"/>').format(style, path))

    def upright(self, x: float, style: str = "guide") -> None:
        """A vertical line over the whole height."""
        self._marks.append(
            Markup('<path class="{}" d="M{},{}V{}"/>').format(
                style, _n(self._x(x)), _n(self._y(self.y[0])), _n(self._y(self.y[1]))
            )
        )

    def level(self, y: float, style: str = "guide") -> None:
        """A horizontal line over the whole width."""
        self._marks.append(
            Markup('<path class="{}" d="M{},{}H{}"/>').format(
                style, _n(self._x(self.x[0])), _n(self._y(y)), _n(self._x(self.x[1]))
            )
        )

    def draw(self) -> Markup:
        """The picture."""
        x_ticks = self.x_ticks if self.x_ticks is not None else _labelled(self.x)
        y_ticks = self.y_ticks if self.y_ticks is not None else _labelled(self.y)
        bottom = self.height - _BOTTOM
        parts = [
            Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
                WIDTH, self.height, self.title
            )
        ]
        for value, text in y_ticks:
            y = self._y(value)
            parts.append(Markup('<path class="grid" d="M{},{}H{}"/>').format(self.left, _n(y), WIDTH - _RIGHT))
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    self.left - 6, _n(y + 3.5), text
                )
            )
        for value, text in x_ticks:
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    _n(self._x(value)), bottom + 13, text
                )
            )
        parts += self._marks
        parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(self.left, bottom, WIDTH - _RIGHT))
        if self.x_label:
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    WIDTH - _RIGHT, self.height - 5, self.x_label
                )
            )
        return Markup("").join([*parts, Markup("</svg>")])

    def _x(self, value: float) -> float:
        low, high = self.x
        return self.left + (value - low) / (high - low) * (WIDTH - _RIGHT - self.left)

    def _y(self, value: float) -> float:
        low, high = self.y
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _BOTTOM - _TOP)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in an interval, at most about `most`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def spread(values: Sequence[float], *, include: Sequence[float] = (), margin: float = 0.06) -> Range:
    """An axis that holds all values, never empty; with a margin, but not beyond a bound that is only included."""
    low, high = min([*values, *include], default=0.0), max([*values, *include], default=1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = max(abs(high) * 0.1, 0.5)
        return low - half, high + half
    extra = margin * (high - low)
    return low - extra * (low not in include), high + extra * (high not in include)


def short(value: float) -> str:
    """A number for a tick: as few digits as tell."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("-", "−")


def _labelled(axis: Range) -> list[tuple[float, str]]:
    return [(value, short(value)) for value in ticks(*axis)]


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
