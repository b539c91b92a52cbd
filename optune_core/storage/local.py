"""The local disk as a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from optune_core.errors import DiskFull, StoreError
from optune_core.process.failpoints import reach
from optune_core.storage.durable import beside, link, make_folder, sync_folder, write
from optune_core.storage.objects import Entry, kind_of


class LocalObjects:
    """Objects as files below a folder. An object appears complete (as a link to a synced temporary file) and survives
    a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def require(self) -> None:
        with self._errors(""):
            make_folder(self.root)

    def create(self, path: str, body: bytes) -> bytes:
        target, kind = self._file(path), kind_of(path)
        reach(f"create.before/{kind}")
        with self._errors(path), beside(target, lambda temporary: write(temporary, body)) as temporary:
            reach(f"create.written/{kind}")
            while not link(temporary, target):
                if (stored := self.read(path)) is not None:  # otherwise it was deleted in the meantime
                    return stored
            sync_folder(target.parent)
        reach(f"create.after/{kind}")
        return body

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        target, kind = self._file(path), kind_of(path)
        reach(f"swap.before/{kind}")
        with self._errors(path):
            make_folder(self.root)
            with (self.root / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when its holder dies
                if self.read(path) != expected:
                    return False
                with beside(target, lambda temporary: write(temporary, body)) as temporary:
                    if expected is not None:
                        os.replace(temporary, target)
                    elif not link(temporary, target):  # `create` takes no lock
                        return False
                    sync_folder(target.parent)
        reach(f"swap.after/{kind}")
        return True

    def refuses_stale_swap(self, path: str) -> bool:
        return True  # the lock is held from the read to the write

    def read(self, path: str) -> bytes | None:
        with self._errors(path):
            try:
                return self._file(path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def upload(self, file: Path, path: str) -> None:
        target, kind = self._file(path), kind_of(path)
        reach(f"upload.before/{kind}")

        def copy(temporary: Path) -> None:
            try:
                os.link(file, temporary)  # on the same disk no second copy is needed
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(file, temporary)
            os.utime(temporary)  # a link has the age of its file, and garbage collection decides by age
            with temporary.open("rb") as copied:
                os.fsync(copied.fileno())

        with self._errors(path), beside(target, copy) as temporary:
            reach(f"upload.written/{kind}")
            temporary.replace(target)
            sync_folder(target.parent)
        reach(f"upload.after/{kind}")

    def download(self, path: str, file: Path) -> None:
        with self._errors(path):
            shutil.copyfile(self._file(path), file)

    def names(self, prefix: str) -> list[str]:
        folder = self._file(prefix)
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def walk(self, prefix: str) -> Iterator[Entry]:
        for file in sorted(self._file(prefix).rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
                if file.is_file():
                    stat = file.stat()
                    yield Entry(file.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime)

    def now(self) -> float:
        # A network disk stamps files by a clock of its own.
        with self._errors(""), beside(self.root / "clock", lambda temporary: write(temporary, b"")) as temporary:
            return temporary.stat().st_mtime

    def delete(self, path: str) -> None:
        target = self._file(path)
        with self._errors(path):
            target.unlink(missing_ok=True)
            for folder in target.parents:  # unlike a bucket, a disk keeps empty folders
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def local_folder(self, path: str) -> Path | None:
        return self._file(path)

    def _file(self, path: str) -> Path:
        return self.root / path

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            where = f"store {self.url!r}, object {path!r}: {name}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"{where}. Free some space (`optune gc` removes objects that no run needs), then give the same "
                    "command again"
                ) from error
            raise StoreError(where) from error
