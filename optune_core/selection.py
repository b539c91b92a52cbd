"""Which prompts are regenerated in an iteration: Algorithm 1's ranking, and its baselines.

A selector is one function: it gives every prompt a sort value, and the N lowest are taken. Ties, and prompts
without a stored pair, never depend on the order of a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import DataError
from optune_core.id_hash import hash_ids


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


def rank_by_chosen_reward(replay: pa.Table) -> pa.Array:
    """OPTune (section 3.1): the reward of the preferred response, ascending.

    Args:
        replay: with column chosen_reward, float64, null where a prompt has no pair.

    Returns:
        float64, one a row. Prompts without a pair come first: they have the most to gain.
    """
    return pc.fill_null(replay["chosen_reward"].combine_chunks(), -math.inf)


def rank_alike(replay: pa.Table) -> pa.Array:
    """The random baseline: every prompt alike, so that the tie-break's hash alone decides."""
    return pa.array(np.zeros(replay.num_rows))


SELECTORS: dict[str, Callable[[pa.Table], pa.Array]] = {
    "optune": rank_by_chosen_reward,
    "random": rank_alike,
    "all": rank_alike,
}


def select_rows(replay: pa.Table, *, selector: str, rho: float, seed: int, iteration: int) -> npt.NDArray[np.uint64]:
    """The rows of the prompts to regenerate, lowest rank first; ties in the order of a hash of (seed, t, prompt id).

    Args:
        replay: previous replay set; columns prompt_id (string), chosen_reward (float64, nullable).
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
        {"rank": SELECTORS[selector](replay), "tie": hash_ids(replay["prompt_id"], f"{seed}/{iteration}")}
    )
    order = pc.sort_indices(ranking, sort_keys=[("rank", "ascending"), ("tie", "ascending")])
    rows: npt.NDArray[np.uint64] = order.slice(0, size).to_numpy()
    return rows


def select(replay: pa.Table, *, selector: str, rho: float, seed: int, iteration: int) -> pa.ChunkedArray:
    """The ids (string) of the prompts to regenerate, lowest rank first; arguments as `select_rows`."""
    rows = select_rows(replay, selector=selector, rho=rho, seed=seed, iteration=iteration)
    return replay["prompt_id"].take(pa.array(rows))
