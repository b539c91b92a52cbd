"""Numbers and tables in the form that people read. None becomes a dash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed number of decimals."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Write a number with its sign, a plus included."""
    return "–" if value is None else f"{value:+.{digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Write a change with its interval."""
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share from 0 to 1 in per cent."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Write a duration in s, min or h, whichever suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def policy(iteration: int) -> str:
    """Write π with the iteration's number as a subscript."""
    return "π" + str(iteration).translate(_SUBSCRIPTS)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table as Markdown: text in the first column, numbers aligned right in the others."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
