"""Which prompts an iteration regenerates: Algorithm 1's ranking, its baselines, and rankings beyond the paper.

selector       what a selector is
registry       selectors by the `type` that a configuration gives them
rows           the N lowest prompts of a ranking; ties never depend on the order of a file
optune         lowest chosen reward first (the paper's)
random_share   the baseline: a random share ρ
everything     `all`: every prompt; `none`: no prompt (offline)
margin         smallest reward margin first
relative       chosen reward lowest against the prompt's own history
bandit         highest upper confidence bound of the gain

To add one, write a class in a file here that derives from `RankingSelector`, and its line in `registry`.
"""

from optune_core.selection.rows import select, select_rows, selection_size
from optune_core.selection.selector import RankingSelector, Selector

__all__ = ["RankingSelector", "Selector", "select", "select_rows", "selection_size"]
