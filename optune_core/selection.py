"""Which prompts are regenerated in an iteration: Algorithm 1's ranking, and its baselines.

A selector is one function: it gives every prompt a sort value, and the N lowest are taken. Ties, and prompts
without a stored pair, never depend on the order of a file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.errors import DataError


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


def tie_break(prompt_ids: list[str], seed: int, iteration: int) -> list[str]:
    """A hash of (seed, iteration, prompt id) for each prompt: a fixed order that no file decides."""
    return [hashlib.sha256(f"{seed}/{iteration}/{prompt_id}".encode()).hexdigest() for prompt_id in prompt_ids]


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
    return pa.array([0.0] * replay.num_rows, pa.float64())


SELECTORS: dict[str, Callable[[pa.Table], pa.Array]] = {
    "optune": rank_by_chosen_reward,
    "random": rank_alike,
    "all": rank_alike,
}


def select(replay: pa.Table, *, selector: str, rho: float, seed: int, iteration: int) -> pa.Array:
    """The prompts to regenerate, lowest rank first.

    Args:
        replay: previous replay set; columns prompt_id (string), chosen_reward (float64, nullable).
        selector: a key of SELECTORS, or 'none'.
        rho: ρ in (0, 1]; 'all' and 'none' do not read it.
        seed: the run's seed.
        iteration: t.

    Returns:
        prompt ids (string), N = ⌈ρ·|P|⌉ of them; all for 'all', none for 'none'.
    """
    if selector == "none":
        return pa.array([], pa.string())
    size = replay.num_rows if selector == "all" else selection_size(replay.num_rows, rho)
    prompt_ids = replay["prompt_id"].combine_chunks()
    ranking = pa.table(
        {
            "prompt_id": prompt_ids,
            "rank": SELECTORS[selector](replay),
            "tie": tie_break(prompt_ids.to_pylist(), seed, iteration),
        }
    )
    order = pc.sort_indices(ranking, sort_keys=[("rank", "ascending"), ("tie", "ascending")])
    return prompt_ids.take(order.slice(0, size))
