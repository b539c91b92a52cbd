"""`all` selects every prompt (full online DPO, Algorithm 2); `none` selects no prompt (offline DPO)."""

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
        """Return 0 for every row, float64, (prompts,)."""
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
        """Return 0 for every row, float64, (prompts,); no row is selected."""
        return np.zeros(replay.num_rows)


def simplest(selector: Selector) -> Selector:
    """Return `All` for a selector with ρ = 1, which selects the same prompts; otherwise the selector itself."""
    return All() if selector.share == 1.0 else selector
