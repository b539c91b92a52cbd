"""Functions and classes of a user's own package, named `package.module:Name` in a configuration."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from optune_core.errors import ConfigError
from optune_core.process.hidden_imports import show_all


def load_named(path: str, source: str) -> Any:
    """Import the function or class that `package.module:Name` names.

    Args:
        path: `package.module:Name`.
        source: its role in the configuration, for messages, such as `reward function`.

    Raises:
        ConfigError: there is no such module, or the module has no such name.
    """
    module_name, _, name = path.partition(":")
    _allow_working_directory()
    show_all()
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"{path!r} cannot be imported: {error}"], source=source) from error


def source_digest(path: str, source: str) -> str:
    """Return the SHA-256 of the source file of the module that `package.module:Name` names.

    The digest is part of the keys of artifacts that the function or class determines, so that they are made again after
    it was edited.

    Args:
        path, source: as for `load_named`.

    Raises:
        ConfigError: the module cannot be found, or has no source file.
    """
    module_name = path.partition(":")[0]
    _allow_working_directory()
    try:
        spec = importlib.util.find_spec(module_name)
    except ImportError as error:
        raise ConfigError([f"{path!r} cannot be imported: {error}"], source=source) from error
    if spec is None or spec.origin is None:
        raise ConfigError([f"{path!r}: there is no module {module_name!r} with a source file"], source=source)
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _allow_working_directory() -> None:
    """Put the working directory on the import path: console scripts do not, and users keep their code there."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
