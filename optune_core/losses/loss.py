"""Base of all losses: sections of the configuration that turn log-probabilities into a loss a row."""

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
    """bool, (P,): True for online samples, whose response takes the place of the chosen one."""
    online_share: float
    """Share of online samples among the rows of the optimizer step, in [0, 1]."""


@dataclass(frozen=True)
class RowLosses:
    """Losses and metrics of the rows of a batch."""

    losses: Tensor
    """float32, (P,): the loss of each row, before the mean."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached values for the log, float32, (P,) each; NaN where a row has no value. `weights` is logged as
    `weights/mean`, together with its effective sample size."""


class Loss(Part):
    """Base of all losses. A loss describes what it needs, and all other code asks it instead of comparing names."""

    needs_reference: ClassVar[bool] = True
    """True: the loss uses reference log-probabilities; False: they are not computed."""
    needs_rejected: ClassVar[bool] = True
    """True: the loss uses rejected responses; False: their log-probabilities are not computed."""
    per_token: ClassVar[bool] = False
    """True: the sum over the rows of a step is divided by the number of tokens in their chosen responses; False: by the
    number of rows."""
    tempers: ClassVar[tuple[str, ...]] = ()
    """Fields that shrink optimizer steps when they are lowered; the error about a loss that diverges names them."""

    @property
    def label(self) -> str:
        """Short name of the loss for tables and legends."""
        return self.type

    @property
    @abstractmethod
    def description(self) -> str:
        """Phrase that names the loss and its parameters, for the page of a run."""

    @property
    def implicit_beta(self) -> float | None:
        """β of the implicit rewards β·log(π/π_ref) that are logged as `rewards/*`; None: the loss has none."""
        return None

    @property
    def online_share(self) -> float | None:
        """Share of the prompts to which every iteration samples responses from π_t; None: the loss has no term on such
        online samples."""
        return None

    @abstractmethod
    def losses(self, batch: Batch) -> RowLosses:
        """Return the loss of each row, float32, (P,). Training minimises its mean over a step (see `per_token`)."""

    def pair_weights(self, margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """Return the weight of each pair, float64, (pairs,); None: all pairs weigh the same.

        Args:
            margins: reward margins r(x, y_w) − r(x, y_l), float64, (pairs,).
        """
        return None
