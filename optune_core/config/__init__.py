"""Configuration: import-light (no torch, no transformers), validated before any work is spent."""

from optune_core.config.loading import load_alpaca, load_benchmark, load_config, load_evaluation, parse_config
from optune_core.config.schema import OptuneConfig
from optune_core.evaluation.alpaca_eval.config import AlpacaConfig
from optune_core.evaluation.harness.config import BenchmarkConfig
from optune_core.evaluation.win_score.config import EvaluationConfig

__all__ = [
    "AlpacaConfig",
    "BenchmarkConfig",
    "EvaluationConfig",
    "OptuneConfig",
    "load_alpaca",
    "load_benchmark",
    "load_config",
    "load_evaluation",
    "parse_config",
]
