"""Canonical JSON and SHA-256: the only place where identities are computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return the one byte string of a value: sorted keys, no white space, shortest float form, UTF-8.

    An instance of a dataclass, such as a reference, is written as its fields.

    Raises:
        TypeError: the value contains something that is not JSON.
        ValueError: the value contains NaN or an infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_fields
    )
    return text.encode()


def _fields(value: object) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def digest(value: Any) -> str:
    """Return the SHA-256 of the value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
