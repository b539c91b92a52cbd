"""Registry of the stages: name → module."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from optune_core.stages.stage import Stage

MODULES = {
    "model": "optune_core.stages.model",
    "prompts": "optune_core.stages.prompts",
    "fixed-pairs": "optune_core.stages.fixed_pairs",
    "selection": "optune_core.stages.selection",
    "responses": "optune_core.stages.responses",
    "scores": "optune_core.stages.scores",
    "replay": "optune_core.stages.replay",
    "policy": "optune_core.stages.policy",
    "preferences": "optune_core.stages.preferences",
    "reward-model": "optune_core.stages.reward_model",
    "templated-prompts": "optune_core.evaluation.win_score.templated_prompts",
    "given-responses": "optune_core.evaluation.win_score.given_responses",
    "comparisons": "optune_core.evaluation.win_score.comparisons",
    "win-score": "optune_core.evaluation.win_score.win_score",
    "benchmark": "optune_core.evaluation.harness.tasks",
    "alpaca-annotations": "optune_core.evaluation.alpaca_eval.annotations",
    "alpaca-win-rate": "optune_core.evaluation.alpaca_eval.win_rate",
}
"""Name of a stage → its module, which is imported when the stage is looked up."""


def find_stage(name: str) -> Stage[Any]:
    """Return the stage of this name.

    Raises:
        KeyError: there is no stage of this name.
    """
    stage: Stage[Any] = import_module(MODULES[name]).STAGE
    assert stage.name == name, f"module of stage {name!r} holds {stage.name!r}"
    return stage
