"""Rewards: conversations in, scores out.

reward              what a reward is
registry            rewards by the `type` that a configuration gives them
ready               a reward whose model is in the store, as stages hand it to each other
classifier          a sequence classifier with one logit; classifier_scorer does its work
function            a function of a user's own package
trained             a Bradley-Terry reward model that is trained before iteration 0

To add one, write a class in a file here that derives from `Reward`, and its line in `registry`.
"""

from optune_core.rewards.ready import ReadyReward
from optune_core.rewards.reward import Conversation, Reward, Scorer

__all__ = ["Conversation", "ReadyReward", "Reward", "Scorer"]
