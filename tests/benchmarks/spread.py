"""Summaries of measurements that were repeated in several turns."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the `median`, `lowest` and `highest` of the values."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def spread_text(value: dict[str, float], digits: int = 2) -> str:
    """Return a result of `spread` for people, as median [lowest, highest]."""
    return f"{value['median']:.{digits}f} [{value['lowest']:.{digits}f}, {value['highest']:.{digits}f}]"
