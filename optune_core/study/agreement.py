"""Agreement of participants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is perfect agreement, 0 what chance gives.

    α = 1 - (n - 1)·Σ_{c≠k} o_ck / Σ_{c≠k} n_c·n_k, with the coincidences o_ck, of which a unit with m values gives
    1 / (m - 1) for each ordered pair of its values (K. Krippendorff, Computing Krippendorff's Alpha-Reliability,
    2011, section C; any number of observers, missing values allowed).

    Args:
        units: of each thing that was judged, the values that it was given; those with fewer than two do not count.

    Returns:
        Alpha, or None where it is undefined: nothing was judged twice, or all values are the same.
    """
    pairable = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0
    for unit in pairable:
        values = unit.total()
        totals += unit
        disagreement += sum(count * (values - count) for count in unit.values()) / (values - 1)
    n = totals.total()
    expected = sum(count * (n - count) for count in totals.values())
    return 1.0 - (n - 1) * disagreement / expected if expected else None
