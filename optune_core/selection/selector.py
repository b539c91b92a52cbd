"""What a selector is: a section of the configuration that ranks the prompts of a replay set."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from optune_core.parts.registry import Part

Values = npt.NDArray[np.float64]


class Selector(Part):
    """Base of all selectors: gives every prompt a sort value, of which the lowest are regenerated first."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of REPLAY that `rank` reads: selection holds these in memory and no others."""
    ranks: ClassVar[bool] = True
    """False where every prompt, or none, is taken, so that no rank matters."""

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
        """Return a sort value a row, float64, (prompts,).

        Args:
            replay: columns `columns`. Prompts without a pair have to get minus infinity: they have the most to gain.
        """

    @property
    def regenerates(self) -> bool:
        """False where no prompt is ever regenerated: training on a fixed preference set (offline)."""
        return self.share > 0.0


class RankingSelector(Selector):
    """Base of selectors that take the share ρ of lowest rank."""

    rho: float = Field(default=0.5, gt=0.0, le=1.0)
    """ρ, the share of prompts regenerated from iteration 1 on; iteration 0 takes every prompt."""

    @property
    def share(self) -> float:
        return self.rho

    @property
    def label(self) -> str:
        return f"{self.type}, ρ = {self.rho:g}"


def numbers(replay: pa.Table, name: str) -> Values:
    """Return a column of numbers as float64, (prompts,); null is NaN."""
    values: Values = replay[name].to_numpy().astype(np.float64, copy=False)
    return values


def unpaired_first(ranks: Values, chosen_rewards: Values) -> Values:
    """Return `ranks` with minus infinity where there is no pair, which is where the chosen reward is NaN."""
    ranks[np.isnan(chosen_rewards)] = -np.inf
    return ranks
