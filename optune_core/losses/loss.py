"""What a loss is: a section of the configuration that turns log-probabilities into a loss a row."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from optune_core.parts.registry import Part

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The tensors of P rows, each a preference pair or an online sample, on one device."""

    policy_chosen_logps: Tensor
    """float32, (P,): log π_θ(y_w|x), summed over response tokens; gradients flow through it."""
    policy_rejected_logps: Tensor
    """float32, (P,): log π_θ(y_l|x); 0 where the rejected response is empty."""
    reference_chosen_logps: Tensor
    """float32, (P,): log π_ref(y_w|x); NaN where the loss needs no reference."""
    reference_rejected_logps: Tensor
    """float32, (P,): log π_ref(y_l|x); NaN where the loss needs no reference."""
    chosen_rewards: Tensor
    """float32, (P,): explicit rewards r(x, y_w); NaN for online samples."""
    rejected_rewards: Tensor
    """float32, (P,): explicit rewards r(x, y_l); NaN for online samples."""
    online: Tensor
    """bool, (P,): which rows are online samples, whose response is the chosen one."""
    online_share: float
    """Share of online samples among the rows of the optimizer step, in [0, 1]."""


@dataclass(frozen=True)
class RowLosses:
    """What a loss computes of a batch."""

    losses: Tensor
    """float32, (P,): a loss a row, before the mean."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Values a row for the log, detached, (P,) each; NaN where a row has none. `weights` is logged as `weights/mean`
    with its effective sample size."""


class Loss(Part):
    """Base of all losses. What a loss needs is said here, and everybody else asks it."""

    needs_reference: ClassVar[bool] = True
    """Whether reference log-probabilities are computed."""
    needs_rejected: ClassVar[bool] = True
    """Whether rejected responses are computed at all."""
    per_token: ClassVar[bool] = False
    """True: a step's loss is the sum over its rows divided by the tokens of their chosen responses, not by their
    number."""
    tempers: ClassVar[tuple[str, ...]] = ()
    """Fields that make smaller steps when they are lowered; named where a loss diverges."""

    @property
    def label(self) -> str:
        """The loss in a few letters, for tables and legends."""
        return self.type

    @property
    @abstractmethod
    def description(self) -> str:
        """The loss in a sentence, with its parameters, for the page of a run."""

    @property
    def implicit_beta(self) -> float | None:
        """β of the implicit rewards β·log(π/π_ref) that are logged as `rewards/*`; None: there are none."""
        return None

    @property
    def online_share(self) -> float | None:
        """Share of the prompts that every iteration samples from π_t for a term of the loss; None: it has no such
        term."""
        return None

    @abstractmethod
    def losses(self, batch: Batch) -> RowLosses:
        """Return a loss a row. The mean over the rows of a step is minimised (or per token, see `per_token`)."""

    def pair_weights(self, margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """Return the weight of each pair, float64, (pairs,); None: the loss weighs all pairs alike.

        Args:
            margins: reward margins r(x, y_w) − r(x, y_l), float64, (pairs,).
        """
        return None
