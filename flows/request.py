"""Parameters of a flow run resolved: the store, the name of the run, its configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from optune_core.errors import ConfigError, OptuneError
from optune_core.parts.names import validate_name
from optune_core.storage import open_objects
from optune_core.storage.lease import read_lease
from optune_core.storage.ledger import no_such_run

if TYPE_CHECKING:
    from optune_core.config import OptuneConfig

DEFAULT_STORE = ".optune/store"


def store_url(store: str | None) -> str:
    """Return the given store, else that of the environment variable OPTUNE_STORE, else .optune/store."""
    return store or os.environ.get("OPTUNE_STORE", DEFAULT_STORE)


def requested(config: str | None, overrides: list[str], store: str, run: str | None) -> tuple[OptuneConfig, str]:
    """Return the configuration that is asked for, and the name of the run.

    Args:
        config: YAML file; None: the configuration of the run's last start.
        overrides: `section.key=value`, on top of the configuration.
        store: folder or s3://bucket/prefix that holds the run.
        run: name of the run; None: the configuration's `name`.

    Raises:
        ConfigError: the configuration or the name is invalid, or neither is given.
        OptuneError: the store holds no run of this name.
    """
    from optune_core.config import load_config, parse_config  # pyarrow, which `optune --help` does not need

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
