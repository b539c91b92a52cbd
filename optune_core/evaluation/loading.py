"""Loading of the YAML file of an evaluation into its validated configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from optune_core.config.loading import read_yaml, validate
from optune_core.errors import ConfigError
from optune_core.evaluation.evaluation import Evaluation
from optune_core.evaluation.registry import EVALUATIONS


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Read and validate the configuration of an evaluation, as an instance of its kind's class.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value in YAML, applied in order.

    Raises:
        ConfigError: as `load_config`; also for a kind that there is not.
    """
    data = read_yaml(path)
    try:
        kind = EVALUATIONS.find_for(data if isinstance(data, Mapping) else {})
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(path)) from error
    return validate(kind, data, overrides, source=str(path))
