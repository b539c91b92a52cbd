"""Agreement of the participants of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Compute Krippendorff's alpha for nominal values: 1 for perfect agreement, 0 for agreement by chance.

    α = 1 - (n - 1)·Σ_{c≠k} o_ck / Σ_{c≠k} n_c·n_k. A unit with m values adds 1 / (m - 1) to the coincidences o_ck for
    each ordered pair of its values (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C; for
    any number of observers, missing values allowed).

    Args:
        units: the values of each judged unit; units with fewer than two values do not count.

    Returns:
        Alpha, or None where it is undefined: no unit was judged twice, or all values are equal.
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
