"""Registry of the rewards: `type` in a configuration → class."""

from __future__ import annotations

from optune_core.parts.registry import Registry
from optune_core.rewards.reward import Reward

REWARDS = Registry(
    "reward",
    Reward,
    {
        "classifier": "optune_core.rewards.classifier:ClassifierReward",
        "function": "optune_core.rewards.function:FunctionReward",
        "trained": "optune_core.rewards.trained:TrainedReward",
    },
)
