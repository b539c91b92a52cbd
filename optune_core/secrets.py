"""Secrets: given by reference through the environment, and kept out of configurations, logs and messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SENSITIVE_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|AUTH_STRING|CREDENTIAL)", re.IGNORECASE)
_USER_IN_URL = re.compile(r"""(?<=://)[^/\s:@]*:[^/\s"']+(?=@)""")
_KNOWN_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,})\b"
)
_SHORTEST = 8
"""Length below which values are not masked: shorter ones are words like `true`, which would garble every log."""

MASK = "***"


def redact(text: str) -> str:
    """Mask everything in a text that looks like a secret: values of sensitive environment variables, user and password
    in URLs, tokens in known formats."""
    for value in sorted(_environment_secrets(os.environ), key=len, reverse=True):
        text = text.replace(value, MASK)
    return _KNOWN_TOKEN.sub(MASK, _USER_IN_URL.sub(MASK, text))


def secrets_in(config: Any, path: str = "") -> Iterator[str]:
    """Find the fields of a configuration that contain a secret instead of a reference, as `section.key`."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from secrets_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from secrets_in(value, f"{path}[{index}]")
    elif isinstance(config, str) and redact(config) != config:
        yield path


def _environment_secrets(environment: Mapping[str, str]) -> set[str]:
    return {
        value
        for name, value in environment.items()
        if _SENSITIVE_NAME.search(name) and len(value) >= _SHORTEST and not os.path.exists(value)
    }
