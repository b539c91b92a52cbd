"""How a measurement that was taken in several turns is told."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """`median`, `lowest` and `highest` of the turns."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def told(value: dict[str, float], digits: int = 2) -> str:
    """What `spread` returned, for people: median [lowest, highest]."""
    return f"{value['median']:.{digits}f} [{value['lowest']:.{digits}f}, {value['highest']:.{digits}f}]"
