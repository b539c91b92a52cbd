"""Kinds of evaluation by the `kind` that a configuration gives them."""

from __future__ import annotations

from optune_core.evaluation.evaluation import Evaluation
from optune_core.parts.registry import Registry

EVALUATIONS = Registry(
    "kind of evaluation",
    Evaluation,
    {
        "win_score": "optune_core.evaluation.win_score.config:WinScore",
        "alpaca_eval": "optune_core.evaluation.alpaca_eval.config:AlpacaEval",
        "harness": "optune_core.evaluation.harness.config:Harness",
    },
    key="kind",
)
