"""`random`, the paper's baseline: a random share of the prompts."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import RankingSelector, Values


class Random(RankingSelector):
    """Regenerate a share ρ drawn at random: all ranks are equal, so the hash that breaks ties decides."""

    type: Literal["random"] = "random"

    def rank(self, replay: pa.Table) -> Values:
        """Return 0 for every row, float64, (prompts,)."""
        return np.zeros(replay.num_rows)
