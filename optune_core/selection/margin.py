"""`margin`, beyond the paper: the pair that says least first."""

from __future__ import annotations

import pyarrow as pa

from optune_core.selection.selector import Selector, Values, numbers, unpaired_first


def rank_by_margin(replay: pa.Table) -> Values:
    """The reward margin r_w − r_l, ascending.

    A difference between two responses to one prompt is what a Bradley-Terry model (Eq. 1) is fitted to, so margins
    compare across prompts where rewards do not. A small one is also what wDPO (Eq. 6) gives the least weight.

    Args:
        replay: chosen_reward and rejected_reward, float64, null where a prompt has no pair.
    """
    chosen = numbers(replay, "chosen_reward")
    return unpaired_first(chosen - numbers(replay, "rejected_reward"), chosen)


MARGIN = Selector(("chosen_reward", "rejected_reward"), rank_by_margin)
