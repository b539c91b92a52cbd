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
from optune_core.selection.registry import SELECTORS


def selection_size(prompts: int, rho: float) -> int:
    """N = ⌈ρ·|P|⌉ (Algorithm 1), computed on ρ as it is written: 0.3 of 10 is 3, not 4.

    Args:
        prompts: |P|, number of prompts.
        rho: ρ in (0, 1].

    Raises:
        DataError: ρ is outside (0, 1].
    """
    if not 0.0 < rho <= 1.0:
        raise DataError(f"rho={rho}: the share of prompts to regenerate must lie in (0, 1]")
    return math.ceil(Fraction(repr(float(rho))) * prompts)


def select_rows(replay: pa.Table, *, selector: str, rho: float, seed: int, iteration: int) -> npt.NDArray[np.uint64]:
    """The rows of the prompts to regenerate, lowest rank first; ties in the order of a hash of (seed, t, prompt id).

    Args:
        replay: previous replay set; columns `columns_of(selector)`.
        selector: a key of SELECTORS, or 'none'.
        rho: ρ in (0, 1]; 'all' and 'none' do not read it.
        seed: the run's seed.
        iteration: t.

    Returns:
        row numbers, N = ⌈ρ·|P|⌉ of them; all for 'all', none for 'none'.
    """
    if selector == "none":
        return np.array([], np.uint64)
    size = replay.num_rows if selector == "all" else selection_size(replay.num_rows, rho)
    ranking = pa.table(
        {"rank": SELECTORS[selector].rank(replay), "tie": hash_ids(replay["prompt_id"], f"{seed}/{iteration}")}
    )
    order = pc.sort_indices(ranking, sort_keys=[("rank", "ascending"), ("tie", "ascending")])
    rows: npt.NDArray[np.uint64] = order.slice(0, size).to_numpy()
    return rows


def select(replay: pa.Table, *, selector: str, rho: float, seed: int, iteration: int) -> pa.ChunkedArray:
    """The ids (string) of the prompts to regenerate, lowest rank first; arguments as `select_rows`."""
    rows = select_rows(replay, selector=selector, rho=rho, seed=seed, iteration=iteration)
    return replay["prompt_id"].take(pa.array(rows))
