"""The two validated string types that reach file paths and imports."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def validate_name(value: str) -> str:
    """A run or configuration name: it becomes part of storage paths, so nothing else may pass.

    Raises ValueError for anything but 1-64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit.
    """
    if not is_name(value):
        raise ValueError(
            f"{value!r} is not a valid name: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or a digit, without '..'"
        )
    return value


def is_name(value: str) -> bool:
    """Whether `validate_name` would let it pass."""
    return bool(_NAME.fullmatch(value)) and ".." not in value


def _validate_function(value: str) -> str:
    if not _FUNCTION.fullmatch(value):
        raise ValueError(f"{value!r} is not a function: write it as package.module:function")
    return value


Name = Annotated[str, AfterValidator(validate_name)]
FunctionPath = Annotated[str, AfterValidator(_validate_function)]
