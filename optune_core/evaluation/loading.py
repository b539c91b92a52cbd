"""From the YAML file of an evaluation to its validated configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optune_core.config.loading import read_yaml, validate
from optune_core.evaluation.alpaca_eval.config import AlpacaConfig
from optune_core.evaluation.harness.config import BenchmarkConfig
from optune_core.evaluation.win_score.config import EvaluationConfig


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read and validate the configuration of a win-score evaluation; as `load_config`."""
    return validate(EvaluationConfig, read_yaml(path), overrides, source=str(path))


def load_benchmark(path: str | Path, overrides: Sequence[str] = ()) -> BenchmarkConfig:
    """Read and validate the configuration of a benchmark; as `load_config`."""
    return validate(BenchmarkConfig, read_yaml(path), overrides, source=str(path))


def load_alpaca(path: str | Path, overrides: Sequence[str] = ()) -> AlpacaConfig:
    """Read and validate the configuration of AlpacaEval 2; as `load_config`."""
    return validate(AlpacaConfig, read_yaml(path), overrides, source=str(path))
