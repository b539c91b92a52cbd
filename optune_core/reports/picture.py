"""Charts as a picture of its own: an SVG file, with its title, its legend and its colours for light and dark."""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files

from markupsafe import Markup

from optune_core.reports.svg import WIDTH, Chart, Key, key_at, text_at

_COLUMNS = 3
_PAD = 14
_LINE = 16
_CHARACTER = 5.9
"""Width of a character on average, with something to spare: fonts are the reader's."""
_SCALE = 1.4
"""Pixels for a unit of a chart, where nothing else sets a picture's size."""


def picture(title: str, panels: Mapping[str, Chart], *, subtitle: str = "", notes: Sequence[str] = ()) -> str:
    """Return an SVG file.

    A picture in an `img` element sees nothing of the page around it, so it has its own background and colours; the
    browser picks light or dark for it.

    Args:
        panels: charts by the names above them, in rows of three at most; their legends become one.
        notes: lines below the charts.
    """
    columns = min(_COLUMNS, len(panels))
    width = 2 * _PAD + columns * WIDTH
    letters = int((width - 2 * _PAD) / _CHARACTER)
    parts: list[Markup] = []
    y = _PAD
    for line in textwrap.wrap(title, letters):
        y += _LINE
        parts.append(text_at(_PAD, y, line, style="title"))
    if subtitle:
        y += _LINE
        parts.append(text_at(_PAD, y, subtitle))
    keys = {key.text: key for chart in panels.values() for key in chart.legend}
    for row in _rows(list(keys.values()), width - 2 * _PAD):
        y += _LINE
        parts += [key_at(_PAD + x, y, key) for x, key in row]
    y += _LINE // 2
    above = _LINE if any(panels) else 0
    height = above + max(chart.height for chart in panels.values())
    for index, (name, chart) in enumerate(panels.items()):
        left, top = _PAD + index % columns * WIDTH, y + index // columns * height
        parts.append(text_at(left + chart.left, top + above - 4, name, style="name"))
        parts.append(Markup('<g transform="translate({},{})">{}</g>').format(left, top + above, chart.content()))
    y += math.ceil(len(panels) / columns) * height
    for line in [line for note in notes for line in textwrap.wrap(note, letters)]:
        y += _LINE
        parts.append(text_at(_PAD, y, line))
    return _file(title, width, y + _PAD, parts)


def data_image(svg: str) -> str:
    """Return an SVG file as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _rows(keys: Sequence[Key], width: float) -> list[list[tuple[float, Key]]]:
    """Return a legend's entries in rows, each with its distance from the left."""
    rows: list[list[tuple[float, Key]]] = []
    x = math.inf
    for key in keys:
        needed = 22 + _CHARACTER * len(key.text) + _PAD
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, key))
        x += needed
    return rows


def _file(title: str, width: int, height: int, parts: Sequence[Markup]) -> str:
    style = files("optune_core.reports").joinpath("templates/chart.css").read_text(encoding="utf-8")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<style>{}</style><rect class="ground" width="100%" height="100%"/>{}</svg>\n'
    ).format(round(_SCALE * width), round(_SCALE * height), width, height, title, Markup(style), Markup("").join(parts))
