"""`all` and `none`: every prompt, which is full online DPO (Algorithm 2), and no prompt, which is offline DPO."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import Selector, Values


class All(Selector):
    """Regenerate every prompt."""

    type: Literal["all"] = "all"
    ranks: ClassVar[bool] = False

    @property
    def share(self) -> float:
        return 1.0

    @property
    def label(self) -> str:
        return "all, ρ = 1"

    def rank(self, replay: pa.Table) -> Values:
        """Return 0 for every row."""
        return np.zeros(replay.num_rows)


class Nothing(Selector):
    """Regenerate no prompt: the fixed preference pairs of `prompts.pairs` are the replay set."""

    type: Literal["none"] = "none"
    ranks: ClassVar[bool] = False

    @property
    def share(self) -> float:
        return 0.0

    @property
    def label(self) -> str:
        return "offline"

    def rank(self, replay: pa.Table) -> Values:
        """Return 0 for every row: none is taken."""
        return np.zeros(replay.num_rows)


def simplest(selector: Selector) -> Selector:
    """Return the simplest selector that regenerates the same prompts from iteration 1 on: at ρ = 1 all rankings do."""
    return All() if selector.share == 1.0 else selector
