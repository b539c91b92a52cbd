"""A store in a dictionary, and one that breaks the contract of swap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from optune_core.errors import StoreError
from optune_core.storage.objects import Entry


class Memory:
    """Objects in a dictionary, with atomic operations as the protocol assumes them."""

    url = "memory"

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def require(self) -> None:
        pass

    def create(self, path: str, body: bytes) -> bytes:
        return self.bodies.setdefault(path, body)

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        if self.bodies.get(path) != expected:
            return False
        self.bodies[path] = body
        return True

    def refuses_stale_swap(self, path: str) -> bool:
        return True

    def read(self, path: str) -> bytes | None:
        return self.bodies.get(path)

    def upload(self, file: Path, path: str) -> None:
        self.bodies[path] = file.read_bytes()

    def download(self, path: str, file: Path) -> None:
        if path not in self.bodies:
            raise StoreError(f"{path} is not there") from FileNotFoundError(path)
        file.write_bytes(self.bodies[path])

    def names(self, prefix: str) -> list[str]:
        return sorted(
            {path.removeprefix(f"{prefix}/").split("/")[0] for path in self.bodies if path.startswith(prefix)}
        )

    def walk(self, prefix: str) -> Iterator[Entry]:
        return iter([Entry(path, len(body), 0.0) for path, body in self.bodies.items() if path.startswith(prefix)])

    def now(self) -> float:
        return 0.0

    def delete(self, path: str) -> None:
        self.bodies.pop(path, None)

    def local_folder(self, path: str) -> Path | None:
        return None


class OverwritingSwap(Memory):
    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        self.bodies[path] = body
        return True
