"""`optune`, the paper's: lowest chosen reward first."""

from __future__ import annotations

import pyarrow as pa

from optune_core.selection.selector import Selector, Values, numbers, unpaired_first


def rank_by_chosen_reward(replay: pa.Table) -> Values:
    """The reward of the preferred response (section 3.1), ascending.

    Args:
        replay: chosen_reward, float64, null where a prompt has no pair.
    """
    chosen = numbers(replay, "chosen_reward")
    return unpaired_first(chosen.copy(), chosen)


OPTUNE = Selector(("chosen_reward",), rank_by_chosen_reward)
