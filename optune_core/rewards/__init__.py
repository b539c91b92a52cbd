"""Rewards, which give conversations scores.

reward              base of all rewards
registry            rewards by the `type` that a configuration gives them
ready               a reward whose model is in the store, as specs of stages hold it
classifier          a sequence classifier with one logit; classifier_scorer scores for it
function            a function of a user's own package
trained             a Bradley-Terry reward model that is trained before iteration 0

To add one, write a class in a file here that derives from `Reward`, and its line in `registry`.
"""

from optune_core.rewards.ready import ReadyReward
from optune_core.rewards.reward import Conversation, Reward, Scorer

__all__ = ["Conversation", "ReadyReward", "Reward", "Scorer"]
