"""The median and range of a measurement over several turns."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return `median`, `lowest` and `highest` of the turns."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def as_text(value: dict[str, float], digits: int = 2) -> str:
    """Format a result of `spread` as median [lowest, highest]."""
    return f"{value['median']:.{digits}f} [{value['lowest']:.{digits}f}, {value['highest']:.{digits}f}]"
