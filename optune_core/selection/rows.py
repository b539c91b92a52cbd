"""Selection of the N lowest prompts of a ranking (Algorithm 1)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.id_hash import hash_ids
from optune_core.errors import DataError
from optune_core.selection.selector import Selector


def selection_size(prompts: int, rho: float) -> int:
    """Return N = ⌈ρ·|P|⌉ (Algorithm 1), computed from the decimal digits of ρ: 0.3 of 10 is 3, not 4.

    Args:
        prompts: |P|, the number of prompts.
        rho: ρ in (0, 1].

    Raises:
        DataError: ρ is outside (0, 1].
    """
    if not 0.0 < rho <= 1.0:
        raise DataError(f"rho={rho}: the share of prompts to regenerate must lie in (0, 1]")
    return math.ceil(Fraction(repr(float(rho))) * prompts)


def select_rows(replay: pa.Table, selector: Selector, *, seed: int, iteration: int) -> npt.NDArray[np.uint64]:
    """Return the rows of the prompts to regenerate, lowest rank first; a hash of (seed, t, id) breaks ties.

    Args:
        replay: the previous replay set, with the columns prompt_id and `selector.columns`.
        selector: selector that ranks the prompts; its `share` is ρ.
        seed: the run's seed.
        iteration: t.

    Returns:
        Row numbers, uint64, (N,), N = ⌈ρ·|P|⌉; none if the selector regenerates no prompt.
    """
    if not selector.regenerates:
        return np.array([], np.uint64)
    size = selection_size(replay.num_rows, selector.share)
    ranking = pa.table({"rank": selector.rank(replay), "tie": hash_ids(replay["prompt_id"], f"{seed}/{iteration}")})
    order = pc.sort_indices(ranking, sort_keys=[("rank", "ascending"), ("tie", "ascending")])
    rows: npt.NDArray[np.uint64] = order.slice(0, size).to_numpy()
    return rows


def select(replay: pa.Table, selector: Selector, *, seed: int, iteration: int) -> pa.ChunkedArray:
    """Return the ids of the prompts to regenerate, string, (N,), lowest rank first; arguments as for `select_rows`."""
    rows = select_rows(replay, selector, seed=seed, iteration=iteration)
    return replay["prompt_id"].take(pa.array(rows))
