"""Configuration of a run, validated before anything is computed. It imports neither torch nor transformers.

run        the configuration of a run, put together from sections that are defined beside the code that reads them
loading    a validated configuration from YAML and `key=value` overrides, or all of its problems together
devices    check of a configuration against the devices of this machine
"""

from optune_core.config.loading import load_config, parse_config
from optune_core.config.run import OptuneConfig

__all__ = ["OptuneConfig", "load_config", "parse_config"]
