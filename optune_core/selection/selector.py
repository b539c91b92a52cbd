"""Base classes of selectors: sections of the configuration that rank the prompts of a replay set."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from optune_core.parts.registry import Part

Values = npt.NDArray[np.float64]
"""One number a prompt, float64, (prompts,)."""


class Selector(Part):
    """Base of all selectors. A selector gives every prompt a sort value; the lowest are regenerated first."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of REPLAY that `rank` reads; no others are held in memory."""
    ranks: ClassVar[bool] = True
    """False: every prompt or none is selected, so that ranks do not matter."""

    @property
    @abstractmethod
    def share(self) -> float:
        """ρ, the share of prompts that is regenerated from iteration 1 on, in [0, 1]."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The selector with its parameters, for tables and pages."""

    @abstractmethod
    def rank(self, replay: pa.Table) -> Values:
        """Return a sort value for every row, float64, (prompts,).

        Prompts without a pair have to get minus infinity, since they gain most (see `unpaired_first`).

        Args:
            replay: replay set with the columns `columns`.
        """

    @property
    def regenerates(self) -> bool:
        """Return whether prompts are regenerated at all; False: training is on a fixed preference set (offline)."""
        return self.share > 0.0


class RankingSelector(Selector):
    """Base of selectors that select the share ρ with the lowest ranks."""

    rho: float = Field(default=0.5, gt=0.0, le=1.0)
    """ρ, the share of prompts regenerated from iteration 1 on; iteration 0 takes every prompt."""

    @property
    def share(self) -> float:
        return self.rho

    @property
    def label(self) -> str:
        return f"{self.type}, ρ = {self.rho:g}"


def numbers(replay: pa.Table, name: str) -> Values:
    """Return a column of numbers as float64, (prompts,), with NaN for null."""
    values: Values = replay[name].to_numpy().astype(np.float64, copy=False)
    return values


def unpaired_first(ranks: Values, chosen_rewards: Values) -> Values:
    """Set `ranks` to minus infinity where there is no pair, that is where the chosen reward is NaN, and return them."""
    ranks[np.isnan(chosen_rewards)] = -np.inf
    return ranks
