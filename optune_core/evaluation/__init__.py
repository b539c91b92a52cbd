"""Win scores of a policy against a baseline (Eq. 7), as a judge sees them."""

from optune_core.evaluation.judgements import combine_judgements, win_score

__all__ = ["combine_judgements", "win_score"]
