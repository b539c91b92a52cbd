"""Reward models and reward functions: one interface, conversations in, scores out."""

from optune_core.rewards.scorer import RewardRef, Scorer, function_identity, load_function, open_scorer

__all__ = ["RewardRef", "Scorer", "function_identity", "load_function", "open_scorer"]
