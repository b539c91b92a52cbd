"""Configuration: import-light (no torch, no transformers), validated before any work is spent.

run        the configuration of a run, put together from the sections beside the code that reads them
loading    from YAML and `key=value` overrides to a validated configuration, or to all its problems at once
devices    a run's configuration against the devices of this machine
"""

from optune_core.config.loading import load_config, parse_config
from optune_core.config.run import OptuneConfig

__all__ = ["OptuneConfig", "load_config", "parse_config"]
