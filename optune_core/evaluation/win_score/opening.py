"""A judge, made ready to rate."""

from __future__ import annotations

from optune_core.evaluation.win_score.judge import Judge, RewardJudge
from optune_core.evaluation.win_score.sections import OpenAIJudge
from optune_core.storage import ArtifactStore


def open_judge(judge: OpenAIJudge | RewardJudge, store: ArtifactStore) -> Judge:
    """Make a judge ready.

    Args:
        store: holds the model of a reward, if it uses one.

    Raises:
        JudgeError: the variable that holds its key is not set.
    """
    if isinstance(judge, OpenAIJudge):
        from optune_core.evaluation.win_score.chat import ChatJudge

        return ChatJudge(judge)
    from optune_core.evaluation.win_score.stand_in import StandInJudge

    return StandInJudge(judge.reward.open(store))
