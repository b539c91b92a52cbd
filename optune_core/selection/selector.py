"""What a selector is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selector:
    columns: tuple[str, ...]
    """Columns of REPLAY that the ranking reads: selection holds these in memory and no others."""
    rank: Callable[[pa.Table], Values]
    """From a table with these columns to a sort value a row; the lowest are regenerated first. Prompts without a pair
    have minus infinity: they have the most to gain."""


def numbers(replay: pa.Table, name: str) -> Values:
    """A column of numbers as float64; null is NaN."""
    values: Values = replay[name].to_numpy().astype(np.float64, copy=False)
    return values


def unpaired_first(ranks: Values, chosen_rewards: Values) -> Values:
    """`ranks`, but minus infinity where there is no pair, that is where the chosen reward is NaN."""
    ranks[np.isnan(chosen_rewards)] = -np.inf
    return ranks
