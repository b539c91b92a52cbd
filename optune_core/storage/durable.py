"""Files that appear complete and survive a power loss: written beside their target, synced, and then renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """Write a temporary file beside the target with `write`, and remove it at the end of the block in any case."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for last in (False, False, True):
            make_folder(target.parent)
            try:
                write(temporary)
                break
            except FileNotFoundError:  # garbage collection removed the folder while it was still empty
                if last:
                    raise
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def link(temporary: Path, target: Path) -> bool:
    """Link the temporary file as the target. Returns False, and changes nothing, where the target exists."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    return True


def write(file: Path, body: bytes) -> None:
    """Write a new file and sync it. Raises FileExistsError if the file exists."""
    with file.open("xb") as opened:
        opened.write(body)
        opened.flush()
        os.fsync(opened.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync each into its own parent so that it survives a power loss."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
