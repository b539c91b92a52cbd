"""Configuration: import-light (no torch, no transformers), validated before any work is spent."""

from optune_core.config.alpaca import AlpacaConfig
from optune_core.config.benchmark import BenchmarkConfig
from optune_core.config.evaluation import EvaluationConfig
from optune_core.config.loading import load_alpaca, load_benchmark, load_config, load_evaluation, parse_config
from optune_core.config.schema import OptuneConfig

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
