"""Lengths of time in a configuration."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _check_duration(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"\d+[smh]", value):
        raise ValueError(f"{value!r} is not a duration: write an integer and its unit, such as 30s, 5m or 1h")
    return value


Duration = Annotated[str, BeforeValidator(_check_duration)]


def duration_seconds(duration: str) -> int:
    """Return the seconds of a valid duration."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]
