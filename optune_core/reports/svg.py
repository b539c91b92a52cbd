"""Charts as SVG: axes, and marks in their coordinates. Colours are CSS classes (`templates/chart.css`), so one drawing
serves light and dark, inside a page and as a picture of its own. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 32

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
SYMBOLS = {
    "circle": "M-3,0a3,3 0 1 0 6,0a3,3 0 1 0 -6,0Z",
    "square": "M-2.8,-2.8h5.6v5.6h-5.6Z",
    "triangle": "M0,-3.8L3.5,2.6H-3.5Z",
    "diamond": "M0,-4L3.3,0L0,4L-3.3,0Z",
    "cross": "M-3,-3L3,3M-3,3L3,-3",
    "star": "M0,-4V4M-3.5,-2L3.5,2M-3.5,2L3.5,-2",
}
"""Outlines of the marks at points, around (0, 0)."""

Range = tuple[float, float]
Points = Sequence[tuple[float, float]]
Ticks = list[tuple[float, str]]


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    text: str
    style: str
    symbol: str | None = None
    """None: a filled square, for bars and areas."""


@dataclass
class Chart:
    """A plot with linear axes. A style is one or more CSS classes, the first of which is a colour.

    Args:
        title: for readers who do not see the picture.
        x, y: (low, high) of the axes.
        x_label: below the axis.
        x_ticks, y_ticks: (value, text); default: round numbers.
        height: of the picture; its width is WIDTH, and a page scales both.
        left: width of the space for the texts of the y axis.
    """

    title: str
    x: Range
    y: Range
    x_label: str = ""
    x_ticks: Sequence[tuple[float, str]] | None = None
    y_ticks: Sequence[tuple[float, str]] | None = None
    height: int = 190
    left: int = _LEFT
    legend: Sequence[Key] = ()
    _marks: list[Markup] = field(default_factory=list)

    def line(self, points: Points, style: str) -> None:
        """Draw a line through points."""
        if len(points) > 1:
            path = " ".join(f"{_n(self._x(x))},{_n(self._y(y))}" for x, y in points)
            self._marks.append(Markup('<polyline class="line {}" points="{}"/>').format(style, path))

    def dots(self, points: Points, style: str, tips: Sequence[str] = (), symbol: str = "circle") -> None:
        """Draw a symbol at each point; `tips` are shown beside the pointer."""
        for index, (x, y) in enumerate(points):
            self._marks.append(_symbol(symbol, style, self._x(x), self._y(y), tips[index] if tips else ""))

    def interval(self, x: float, low: float, high: float, style: str) -> None:
        """Draw a vertical error bar."""
        path = f"M{_n(self._x(x))},{_n(self._y(low))}V{_n(self._y(high))}"
        self._marks.append(Markup('<path class="interval {}" d="{}"/>').format(style, path))

    def bar(self, x: Range, y: Range, style: str, tip: str = "") -> None:
        """Draw a rectangle between two corners."""
        (x0, x1), (y0, y1) = x, y
        left, top = self._x(min(x0, x1)), self._y(max(y0, y1))
        width, height = self._x(max(x0, x1)) - left, self._y(min(y0, y1)) - top
        self._marks.append(
            Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
                style, _n(left), _n(top), _n(width), _n(height), _tip(tip)
            )
        )

    def area(self, edges: Sequence[float], heights: Sequence[float], base: float, style: str) -> None:
        """Draw a histogram: `heights` above `base`, one between each two neighbouring `edges`."""
        path = f"M{_n(self._x(edges[0]))},{_n(self._y(base))}"
        for left, right, height in zip(edges, edges[1:], heights, strict=False):
            path += f"L{_n(self._x(left))},{_n(self._y(base + height))}H{_n(self._x(right))}"
        path += f"V{_n(self._y(base))}Z"
        self._marks.append(Markup('<path class="area {}" d="{}"/>').format(style, path))

    def upright(self, x: float) -> None:
        """Draw a dotted vertical line from the bottom to the top."""
        path = f"M{_n(self._x(x))},{_n(self._y(self.y[0]))}V{_n(self._y(self.y[1]))}"
        self._marks.append(Markup('<path class="guide" d="{}"/>').format(path))

    def level(self, y: float, style: str = "guide") -> None:
        """Draw a horizontal line from the left to the right, dotted unless it is an `axis`."""
        path = f"M{_n(self._x(self.x[0]))},{_n(self._y(y))}H{_n(self._x(self.x[1]))}"
        self._marks.append(Markup('<path class="{}" d="{}"/>').format(style, path))

    def draw(self) -> Markup:
        """Return the chart as an element of an HTML page."""
        return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, self.height, self.title, self.content()
        )

    def content(self) -> Markup:
        """Return axes and marks, for a surrounding `svg` or `g` element."""
        x_ticks = self.x_ticks if self.x_ticks is not None else _labelled(self.x)
        y_ticks = self.y_ticks if self.y_ticks is not None else _labelled(self.y)
        bottom = self.height - _BOTTOM
        parts: list[Markup] = []
        for value, text in y_ticks:
            y = self._y(value)
            parts.append(Markup('<path class="grid" d="M{},{}H{}"/>').format(self.left, _n(y), WIDTH - _RIGHT))
            parts.append(text_at(self.left - 6, y + 3.5, text, anchor="end"))
        for value, text in x_ticks:
            parts.append(text_at(self._x(value), bottom + 13, text, anchor="middle"))
        parts += self._marks
        parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(self.left, bottom, WIDTH - _RIGHT))
        if self.x_label:
            parts.append(text_at(WIDTH - _RIGHT, self.height - 5, self.x_label, anchor="end"))
        return Markup("").join(parts)

    def _x(self, value: float) -> float:
        low, high = self.x
        return self.left + (value - low) / (high - low) * (WIDTH - _RIGHT - self.left)

    def _y(self, value: float) -> float:
        low, high = self.y
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _BOTTOM - _TOP)


def text_at(x: float, y: float, text: str, *, anchor: str = "start", style: str = "tick") -> Markup:
    """Return a text on one line; `anchor` says which end of it is at `x`."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(style, _n(x), _n(y), anchor, text)


def key_at(x: float, y: float, key: Key) -> Markup:
    """Return a legend's entry, 22 units of sample and then its text."""
    if key.symbol is None:
        sample = Markup('<rect class="bar {}" x="{}" y="{}" width="10" height="10"/>').format(
            key.style, _n(x + 6), _n(y - 9)
        )
    else:
        sample = Markup('<path class="line {}" d="M{},{}h18"/>').format(key.style, _n(x), _n(y - 3.5))
        sample += _symbol(key.symbol, key.style, x + 9, y - 3.5)
    return sample + text_at(x + 22, y, key.text)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers in an interval, at most about `most`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def integer_ticks(last: int, text: Callable[[int], str], first: int = 0) -> Ticks:
    """Return ticks at integers, at most eight."""
    step = max(1, -(-(last - first + 1) // 8))
    return [(number, text(number)) for number in range(first, last + 1, step)]


def axis_range(values: Sequence[float], *, include: Sequence[float] = (), margin: float = 0.06) -> Range:
    """Return an axis that holds all values and is never empty; an end that is one of `include` gets no margin."""
    low, high = min([*values, *include], default=0.0), max([*values, *include], default=1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = max(abs(high) * 0.1, 0.5)
        return low - half, high + half
    extra = margin * (high - low)
    return low - extra * (low not in include), high + extra * (high not in include)


def short(value: float) -> str:
    """Write a number for a tick in few digits."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("-", "−")


def _symbol(name: str, style: str, x: float, y: float, tip: str = "") -> Markup:
    return Markup('<path class="dot {}" transform="translate({},{})" d="{}">{}</path>').format(
        style, _n(x), _n(y), SYMBOLS[name], _tip(tip)
    )


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _labelled(axis: Range) -> Ticks:
    return [(value, short(value)) for value in ticks(*axis)]


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
