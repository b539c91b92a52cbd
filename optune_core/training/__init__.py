"""Weighted DPO training: TRL's DPO trainer on stored token ids, with stored reference log-probabilities."""
