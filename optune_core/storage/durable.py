"""Files that appear whole and survive a power loss: written beside their place, synced, and then named."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file beside the target, written by `write`; gone afterwards, whatever happens."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for last in (False, False, True):
            make_folder(target.parent)
            try:
                write(temporary)
                break
            except FileNotFoundError:  # a collector of garbage saw the folder while it was empty
                if last:
                    raise
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def link(temporary: Path, target: Path) -> bool:
    """Give the target its content, unless something stands there."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    return True


def write(file: Path, body: bytes) -> None:
    with file.open("xb") as opened:
        opened.write(body)
        opened.flush()
        os.fsync(opened.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power loss: each is synced into its own parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
