"""Validated strings that become part of storage paths, imports and look-ups of environment variables."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def validate_name(value: str) -> str:
    """Return the name of a run or configuration if it is safe as part of a storage path.

    Raises:
        ValueError: it is not 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or a digit, without '..'.
    """
    if not is_name(value):
        raise ValueError(
            f"{value!r} is not a valid name: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or a digit, without '..'"
        )
    return value


def is_name(value: str) -> bool:
    """Return whether `validate_name` accepts the value."""
    return bool(_NAME.fullmatch(value)) and ".." not in value


def is_path(value: str) -> bool:
    """Return whether the value has the form `package.module:Name`."""
    return bool(_PATH.fullmatch(value))


def _validate_function(value: str) -> str:
    if not is_path(value):
        raise ValueError(f"{value!r} is not a function: write it as package.module:function")
    return value


def _validate_variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("is not the name of an environment variable: give the name of a variable that holds the key")
    return value


Name = Annotated[str, AfterValidator(validate_name)]
FunctionPath = Annotated[str, AfterValidator(_validate_function)]
EnvironmentVariable = Annotated[str, AfterValidator(_validate_variable)]
