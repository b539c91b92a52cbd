"""`random` and `all`, the baselines: every prompt alike, so that the tie-break's hash alone decides."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from optune_core.selection.selector import Selector, Values


def rank_alike(replay: pa.Table) -> Values:
    """0 for every row."""
    return np.zeros(replay.num_rows)


ALIKE = Selector((), rank_alike)
