"""The order in which the cells of a sweep are computed, so that their common work is computed once.

Cells whose configurations agree in some sections ask for the same artifacts, which the second cell finds if the first
has committed them. So of such cells one starts alone; the others start when its iteration 0 is committed.
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
"""Sections that determine the responses, the replay set and the policy of iteration 0. Cells that agree in them share
these artifacts. The section `selection` matters from iteration 1 on."""


class SweepOrder:
    """The order of the cells: a cell waits while another computes artifacts that both need."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        sharing: defaultdict[bytes, list[str]] = defaultdict(list)
        for cell in cells:
            for prefix in _prefixes(cell.config):
                sharing[prefix].append(cell.run)
        self._groups = {cell.run: [sharing[prefix] for prefix in _prefixes(cell.config)] for cell in cells}

    def next(self, waiting: Sequence[Cell], at_work: Collection[str], past_iteration_0: Collection[str]) -> Cell | None:
        """Return the first waiting cell that needs no artifact which another cell is computing; None: all have to wait.

        Args:
            waiting: cells that have not started, in the order of the file.
            at_work: runs of the cells that are being computed.
            past_iteration_0: runs of the cells that have committed their iteration 0.
        """
        for cell in waiting:
            groups = self._groups[cell.run]
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
