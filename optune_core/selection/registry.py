"""Registry of the selectors: `type` in a configuration → class."""

from __future__ import annotations

from optune_core.parts.registry import Registry
from optune_core.selection.selector import Selector

SELECTORS = Registry(
    "selector",
    Selector,
    {
        "optune": "optune_core.selection.optune:Optune",
        "random": "optune_core.selection.random_share:Random",
        "all": "optune_core.selection.everything:All",
        "none": "optune_core.selection.everything:Nothing",
        "margin": "optune_core.selection.margin:Margin",
        "relative": "optune_core.selection.relative:Relative",
        "bandit": "optune_core.selection.bandit:Bandit",
    },
    default="optune",
)
