"""Configuration: import-light (no torch, no transformers), validated before any work is spent."""

from optune_core.config.loading import load_config, parse_config
from optune_core.config.schema import OptuneConfig

__all__ = ["OptuneConfig", "load_config", "parse_config"]
