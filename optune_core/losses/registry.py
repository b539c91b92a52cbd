"""Registry of the losses: `type` in a configuration → class."""

from __future__ import annotations

from optune_core.losses.loss import Loss
from optune_core.parts.registry import Registry

LOSSES = Registry(
    "loss",
    Loss,
    {
        "wdpo": "optune_core.losses.wdpo:WeightedDpo",
        "best_of_n": "optune_core.losses.best_of_n:BestOfN",
        "hypo": "optune_core.losses.hypo:HyPO",
    },
)
