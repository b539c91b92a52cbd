"""What a flow run is asked for: a store, a run, a configuration."""

from __future__ import annotations

import os

from optune_core.config import OptuneConfig, load_config, parse_config
from optune_core.errors import ConfigError, OptuneError
from optune_core.parts.names import validate_name
from optune_core.storage import open_objects
from optune_core.storage.lease import read_lease
from optune_core.storage.ledger import no_such_run

DEFAULT_STORE = ".optune/store"


def store_url(store: str | None) -> str:
    """The store that is named, else the environment's OPTUNE_STORE, else .optune/store."""
    return store or os.environ.get("OPTUNE_STORE", DEFAULT_STORE)


def requested(config: str | None, overrides: list[str], store: str, run: str | None) -> tuple[OptuneConfig, str]:
    """The configuration to work with and the name of the run.

    Args:
        config: YAML file; None for that of the run's last start.
        overrides: `section.key=value`, on top of it.
        store: where the run is.
        run: its name; None for the configuration's.

    Raises:
        ConfigError: the configuration or the name is invalid, or neither is given.
        OptuneError: there is no such run.
    """
    if run is not None:
        try:
            validate_name(run)
        except ValueError as error:
            raise ConfigError([f"run {error}"], source="command") from error
    if config is not None:
        settings = load_config(config, overrides)
        return settings, run or settings.name
    if run is None:
        raise ConfigError(["is missing: give a YAML file, or the name of a run to continue"], source="command")
    objects = open_objects(store)
    record = read_lease(objects, run)
    if record is None:
        raise OptuneError(no_such_run(objects, run, "to continue"))
    return parse_config(record.config, overrides, source=f"run {run!r}"), run
