"""Selectors by the name that a configuration gives them."""

from __future__ import annotations

from optune_core.selection.alike import ALIKE
from optune_core.selection.bandit import BANDIT
from optune_core.selection.margin import MARGIN
from optune_core.selection.optune import OPTUNE
from optune_core.selection.relative import RELATIVE
from optune_core.selection.selector import Selector

SELECTORS: dict[str, Selector] = {
    "optune": OPTUNE,
    "random": ALIKE,
    "all": ALIKE,
    "margin": MARGIN,
    "relative": RELATIVE,
    "bandit": BANDIT,
}


def columns_of(selector: str) -> tuple[str, ...]:
    """Columns of REPLAY that `select_rows` reads.

    Args:
        selector: a key of SELECTORS, or 'none'.
    """
    return ("prompt_id",) if selector == "none" else ("prompt_id", *SELECTORS[selector].columns)
