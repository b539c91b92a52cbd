"""The stages. Each module has the same three names:

Spec            what the stage is asked for: configuration parts and references, as JSON
works(store, spec)           the works it commits, computed without heavy imports
run(store, spec, progress)   commits each of them that is not committed yet

and, where several processes can make its works side by side:

replicas(spec)               how many, on how many devices each; None for one process that does all
share(spec, numbers)         the spec of the works with these numbers alone
"""

from __future__ import annotations

import importlib
from types import ModuleType

IN_PROCESS = frozenset({"selection", "replay", "given-responses", "win-score"})
"""Columnar work of a moment; all other stages run in a child process of their own."""

TOKENIZING = frozenset({"model", "prompts", "fixed-pairs", "templated-prompts"})
"""Need no more of transformers than a tokenizer."""

_MODULES = {
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


def stage_module(name: str) -> ModuleType:
    """The module of a stage. Raises KeyError for a name that is none."""
    return importlib.import_module(_MODULES[name])
