"""The N lowest prompts of a ranking (Algorithm 1)."""

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
    """Return N = ⌈ρ·|P|⌉ (Algorithm 1), computed on ρ as it is written: 0.3 of 10 is 3, not 4.

    Args:
        prompts: |P|, number of prompts.
        rho: ρ in (0, 1].

    Raises:
        DataError: ρ is outside (0, 1].
    """
    if not 0.0 < rho <= 1.0:
        raise DataError(f"rho={rho}: the share of prompts to regenerate must lie in (0, 1]")
    return math.ceil(Fraction(repr(float(rho))) * prompts)


def select_rows(replay: pa.Table, selector: Selector, *, seed: int, iteration: int) -> npt.NDArray[np.uint64]:
    """Return the rows of the prompts to regenerate, lowest rank first; ties in the order of a hash of (seed, t, id).

    Args:
        replay: previous replay set; columns prompt_id and `selector.columns`.
        selector: ranks the prompts; its `share` is ρ.
        seed: the run's seed.
        iteration: t.

    Returns:
        uint64, (N,): row numbers, N = ⌈ρ·|P|⌉; none where the selector regenerates nothing.
    """
    if not selector.regenerates:
        return np.array([], np.uint64)
    size = selection_size(replay.num_rows, selector.share)
    ranking = pa.table({"rank": selector.rank(replay), "tie": hash_ids(replay["prompt_id"], f"{seed}/{iteration}")})
    order = pc.sort_indices(ranking, sort_keys=[("rank", "ascending"), ("tie", "ascending")])
    rows: npt.NDArray[np.uint64] = order.slice(0, size).to_numpy()
    return rows


def select(replay: pa.Table, selector: Selector, *, seed: int, iteration: int) -> pa.ChunkedArray:
    """Return the ids (string) of the prompts to regenerate, lowest rank first; arguments as `select_rows`."""
    rows = select_rows(replay, selector, seed=seed, iteration=iteration)
    return replay["prompt_id"].take(pa.array(rows))
