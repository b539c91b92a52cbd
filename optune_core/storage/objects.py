"""The interface of the store's backends: objects under a root, complete, and created at most once.

All storage rests on the promise of `create`: of any number of racing creators exactly one wins, and each of them
learns whose bytes are stored. The promise holds after lost answers too, because `create` compares the stored bytes
with its own; so a body must be unique to its creator (manifests contain an attempt id).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_CREATE_BYTES = 1 << 20
"""Largest body of `create` and `swap`. These objects stay single-part, because conditional multipart completion is
not atomic on any server that was tried."""


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it."""

    path: str
    size: int
    """Size in bytes."""
    modified: float
    """Unix time in seconds by the store's clock: compare it with `Objects.now` only."""


class Objects(Protocol):
    """Objects named by '/'-separated paths below one root URL."""

    url: str

    def require(self) -> None:
        """Raise StoreError unless the root exists or may be made. Folders are made, buckets never are."""
        ...

    def create(self, path: str, body: bytes) -> bytes:
        """Create the object, unless it exists. Returns the bytes that are stored afterwards: `body`, or the winner's.

        Args:
            path: path of the object.
            body: bytes that no other creator writes, so that a lost answer can be distinguished from a lost race.

        Raises:
            StoreError: the backend refuses (permission, bucket).
            TransientError: the backend gave no answer; the object may have been created.
        """
        ...

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        """Replace the object if its bytes are `expected`. Returns whether `body` is stored.

        Of any number of racing callers with the same `expected` at most one gets True, and exactly one if all get an
        answer.

        Args:
            path: path of the object.
            expected: bytes to be replaced; None: create the object if it does not exist.
            body: bytes that no other writer writes, so that a lost answer can be distinguished from a lost race.

        Raises:
            StoreError: the backend refuses (permission, bucket).
            TransientError: the backend gave no answer; `body` may be stored.
        """
        ...

    def refuses_stale_swap(self, path: str) -> bool:
        """Overwrite `path`, and return whether the store refuses writes to an object that changed since it was read."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return the object's bytes, or None if it does not exist."""
        ...

    def upload(self, file: Path, path: str) -> None:
        """Write a file of any size as an object, replacing it. The file must not be changed afterwards."""
        ...

    def download(self, path: str, file: Path) -> None:
        """Fetch an object of any size into a file. Raises StoreError if the object does not exist."""
        ...

    def names(self, prefix: str) -> list[str]:
        """List the last path parts directly below a prefix, sorted. For display: no decision rests on a listing."""
        ...

    def walk(self, prefix: str) -> Iterator[Entry]:
        """List every object below a prefix. For garbage collection: no decision about work rests on a listing."""
        ...

    def now(self) -> float:
        """Return the time of the store's clock: Unix time in seconds."""
        ...

    def delete(self, path: str) -> None:
        """Delete the object, if it exists."""
        ...

    def local_folder(self, path: str) -> Path | None:
        """Return the folder that holds these objects as files, or None where the backend is not a disk."""
        ...


def kind_of(path: str) -> str:
    """Return the kind of an object in the names of failpoints: its stage, or which record of a run it is."""
    parts = path.split("/")
    return parts[1] if parts[0] == "artifacts" else (parts[2] if parts[0] == "runs" else parts[0]).partition(".")[0]
