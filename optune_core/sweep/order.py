"""In which order the cells of a sweep are computed, so that what they share is computed once.

Content keys share a common prefix between cells by themselves, if one has made it when the next one looks. So of cells
with a common prefix one goes first, alone, until its iteration 0 is committed; then all others may go at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from optune_core.config import OptuneConfig
from optune_core.storage.canonical import canonical_json
from optune_core.sweep.grid import Cell

_RESPONSES = ("seed", "policy", "prompts", "generation")
_REPLAY = (*_RESPONSES, "reward", "held_out")
_POLICY = (*_REPLAY, "training")
"""What iteration 0 reads for its responses, its replay set and its policy. Cells that agree in these sections share
that; what cells differ in beyond, the selection, is read from iteration 1 on."""


class SweepOrder:
    """Which cells share a prefix."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        alike: defaultdict[bytes, list[str]] = defaultdict(list)
        for cell in cells:
            for prefix in _prefixes(cell.config):
                alike[prefix].append(cell.run)
        self._alike = {cell.run: [alike[prefix] for prefix in _prefixes(cell.config)] for cell in cells}

    def next(self, waiting: Sequence[Cell], at_work: Collection[str], past_iteration_0: Collection[str]) -> Cell | None:
        """The first waiting cell that would make nothing that another one is making now; None: all have to wait.

        Args:
            at_work: the cells that are being computed.
            past_iteration_0: the cells that have committed their iteration 0.
        """
        for cell in waiting:
            groups = self._alike[cell.run]
            if not any(_meet(group, at_work) and not _meet(group, past_iteration_0) for group in groups):
                return cell
        return None


def _meet(group: Sequence[str], runs: Collection[str]) -> bool:
    return any(run in runs for run in group)


def _prefixes(config: OptuneConfig) -> list[bytes]:
    return [
        canonical_json(config.model_dump(mode="json", include=set(sections)))
        for sections in (_RESPONSES, _REPLAY, _POLICY)
    ]
