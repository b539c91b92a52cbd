"""Selection of the prompts that an iteration regenerates: the paper's ranking, its baselines, and others beyond it.

selector       base classes of selectors
registry       selectors by the `type` that a configuration gives them
rows           the N lowest prompts of a ranking, independent of the order of a file
optune         lowest chosen reward first (the paper's ranking)
random_share   a random share ρ (the paper's baseline)
everything     `all`: every prompt; `none`: no prompt (offline)
margin         smallest reward margin first
relative       chosen reward lowest against the history of the prompt
bandit         highest upper confidence bound of the gain

To add one, write a class in a file here that derives from `RankingSelector`, and its line in `registry`.
"""

from optune_core.selection.rows import select, select_rows, selection_size
from optune_core.selection.selector import RankingSelector, Selector

__all__ = ["RankingSelector", "Selector", "select", "select_rows", "selection_size"]
