"""References to artifacts, the works that they are made from, and the manifests that commit them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from optune_core.storage.canonical import canonical_json, digest


@dataclass(frozen=True)
class Ref:
    """Reference to a committed artifact, small and printable. Stages and tasks pass references to each other."""

    stage: str
    key: str
    digest: str
    """SHA-256 over the names, sizes and digests of the artifact's files. Equal digests mean identical bytes."""


_REF_FIELDS = {field.name for field in fields(Ref)}


def read_record(body: bytes) -> Any:
    """Return the value of a JSON text in which every reference is a `Ref`; `canonical_json` writes it back."""
    return json.loads(body, object_hook=_revived)


def _revived(value: dict[str, Any]) -> Any:
    return Ref(**value) if value.keys() == _REF_FIELDS else value


@dataclass(frozen=True)
class Work:
    """Origin of an artifact: the stage, the version of its code, and the parameters and artifacts that it reads."""

    stage: str
    version: int
    params: Mapping[str, Any]
    parents: Mapping[str, Ref] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the work, in hex. Parents enter by content: equal bytes are the same parent, however made."""
        return digest(
            {
                "stage": self.stage,
                "version": self.version,
                "params": dict(self.params),
                "parents": {role: ref.digest for role, ref in self.parents.items()},
            }
        )


@dataclass(frozen=True)
class Manifest:
    """Commit of an artifact: everything that is recorded about it besides its data."""

    ref: Ref
    version: int
    params: dict[str, Any]
    parents: dict[str, Ref]
    attempt: str
    files: dict[str, tuple[int, str]]
    """Relative path → (size in bytes, SHA-256 in hex)."""
    metrics: dict[str, Any]
    """Facts about the result, equal for equal results."""
    timing: dict[str, float]
    """Durations in seconds of the computation that made the artifact. They differ each time it is made."""
    code_version: str
    committed_at: float
    """Time of the commit: Unix time in seconds, by the clock of the machine that committed."""

    def to_bytes(self) -> bytes:
        value = asdict(self)
        value["files"] = {path: {"size": size, "sha256": sha} for path, (size, sha) in self.files.items()}
        return canonical_json(value)

    @classmethod
    def from_bytes(cls, body: bytes) -> Manifest:
        value = read_record(body)
        value["files"] = {path: (entry["size"], entry["sha256"]) for path, entry in value["files"].items()}
        return cls(**value)
