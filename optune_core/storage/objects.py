"""Objects under a root: complete, and created at most once. Two backends, the local disk and S3.

All storage rests on the promise of `create`: of any number of racing creators exactly one wins, and each of them
learns whose bytes are stored. The promise holds after lost answers too, because `create` compares the stored bytes
with its own; so a body must be unique to its creator (manifests contain an attempt id).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from optune_core.errors import DiskFull, StoreError, TransientError
from optune_core.process.failpoints import reach
from optune_core.storage.durable import beside, link, make_folder, sync_folder, write

T = TypeVar("T")

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
        """Whether the store refuses a write to an object that changed after its writer read it. Overwrites `path`."""
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


def open_objects(url: str) -> Objects:
    """Open a store by URL or path.

    Raises:
        StoreError: the URL has a scheme whose conditional writes this project has not verified.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return LocalObjects(Path(url.removeprefix("file://")).expanduser().absolute())
    if scheme == "s3":
        return S3Objects(url.rstrip("/"))
    raise StoreError(
        f"store {url!r}: the scheme {scheme!r} is not supported, because its create-if-absent was not verified by "
        "this project. Use a local folder or s3://bucket/prefix"
    )


def check_conditional_writes(objects: Objects) -> None:
    """Check that commits in this store are exclusive, before any work is spent.

    Raises:
        StoreError: the store let a second writer overwrite an object, or it cannot be written or read.
    """
    objects.require()
    path = f"probe/{uuid.uuid4().hex}"
    first, second = b"first " + path.encode(), b"second " + path.encode()
    created = [objects.create(path, first), objects.create(path, second), objects.read(path)]
    swapped = [objects.swap(path, second, b"third"), objects.swap(path, first, second), objects.read(path)]
    exact = objects.refuses_stale_swap(path)
    objects.delete(path)
    advice = "Use a store with conditional writes, and keep bucket versioning off"
    if created != [first, first, first]:
        raise StoreError(
            f"store {objects.url!r} ignores If-None-Match: a second writer replaced an existing object. {advice}"
        )
    if swapped != [False, True, second] or not exact:
        raise StoreError(f"store {objects.url!r} does not honour If-Match, so no lease can be held in it. {advice}")


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
        target, kind = self._file(path), _kind(path)
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
        target, kind = self._file(path), _kind(path)
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
        target, kind = self._file(path), _kind(path)
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


class S3Objects:
    """Objects in a bucket, through s3fs. Credentials and endpoint come from the AWS environment variables."""

    _TRIES = 5
    _PAUSE_SECONDS = 0.3
    """Pause before the second try, doubled before each later one. A burst of errors that outlasts all tries fails the
    task, which is tried again after longer pauses."""
    _TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._root = url.removeprefix("s3://")
        self._fs: Any = fsspec.filesystem(
            "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=self._TIMEOUTS
        )
        self._fs.retries = 1  # `_try` repeats requests instead, and looks up an unknown outcome first

    def require(self) -> None:
        # Some servers make a missing bucket at the first write, so a mistyped name would go unnoticed.
        bucket = self._root.partition("/")[0]
        self._try("", lambda: self._fs.call_s3("head_bucket", Bucket=bucket))

    def create(self, path: str, body: bytes) -> bytes:
        _check_size(path, body)
        reach(f"create.before/{_kind(path)}")

        def attempt() -> bytes:
            try:
                self._fs.pipe_file(self._key(path), body, mode="create")
                return body
            except Exception as error:
                self._raise_if_final(error, path)
                # Refused, or unknown because the answer was lost on the way: the stored object decides.
                found, _ = self._read_with_tag(path)
                if found is None:
                    raise
                return found

        stored = self._try(path, attempt)
        reach(f"create.after/{_kind(path)}")
        return stored

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        if expected is None:
            return self.create(path, body) == body
        _check_size(path, body)
        reach(f"swap.before/{_kind(path)}")

        def attempt() -> bool:
            current, tag = self._read_with_tag(path)
            if current == body:  # the answer to an earlier try was lost on the way
                return True
            if current != expected:
                return False
            try:
                self._fs.pipe_file(self._key(path), body, IfMatch=tag)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return False  # deleted in the meantime
            return True

        swapped = self._try(path, attempt)
        reach(f"swap.after/{_kind(path)}")
        return swapped

    def refuses_stale_swap(self, path: str) -> bool:
        _, stale = self._try(path, lambda: self._read_with_tag(path))
        self._try(path, lambda: self._fs.pipe_file(self._key(path), b"changed meanwhile"))

        def refused() -> bool:
            try:
                self._fs.pipe_file(self._key(path), b"too late", IfMatch=stale)
            except Exception as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    return True
                raise
            return False

        return self._try(path, refused)

    def read(self, path: str) -> bytes | None:
        return self._try(path, lambda: self._read_with_tag(path)[0])

    def upload(self, file: Path, path: str) -> None:
        reach(f"upload.before/{_kind(path)}")
        self._try(path, lambda: self._fs.put_file(str(file), self._key(path)))
        reach(f"upload.after/{_kind(path)}")

    def download(self, path: str, file: Path) -> None:
        self._try(path, lambda: self._fs.get_file(self._key(path), str(file)))

    def names(self, prefix: str) -> list[str]:
        def listed() -> list[str]:
            try:
                return sorted(entry.rsplit("/", 1)[-1] for entry in self._fs.ls(self._key(prefix), detail=False))
            except FileNotFoundError:
                return []

        return self._try(prefix, listed)

    def walk(self, prefix: str) -> Iterator[Entry]:
        found: dict[str, Any] = self._try(prefix, lambda: self._fs.find(self._key(prefix), detail=True))
        for key, info in sorted(found.items()):
            if info["type"] != "file":
                continue  # some servers list prefixes that have become empty
            yield Entry(key.removeprefix(f"{self._root}/"), info["size"], info["LastModified"].timestamp())

    def now(self) -> float:
        path = f"probe/{uuid.uuid4().hex}"
        self.create(path, b"what time is it?")
        try:
            info = self._try(path, lambda: self._fs.info(self._key(path)))
        finally:
            self.delete(path)
        modified: float = info["LastModified"].timestamp()
        return modified

    def delete(self, path: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._key(path))

        self._try(path, remove)

    def local_folder(self, path: str) -> Path | None:
        return None

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _read_with_tag(self, path: str) -> tuple[bytes | None, str]:
        """Return the object's bytes (None if it does not exist) and their ETag, from one answer."""
        from fsspec.asyn import sync

        bucket, _, key = self._key(path).partition("/")

        async def get() -> tuple[bytes, str]:
            answer = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as stream:
                body: bytes = await stream.read()
            return body, answer["ETag"].strip('"')  # one of the servers tried compares only the unquoted form

        try:
            found: tuple[bytes, str] = sync(self._fs.loop, get)
            return found
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return None, ""

    def _try(self, path: str, call: Callable[[], T]) -> T:
        for attempt in range(self._TRIES):
            try:
                return call()
            except Exception as error:
                self._raise_if_final(error, path)
                failure = error
            if attempt + 1 < self._TRIES:
                time.sleep(self._PAUSE_SECONDS * 2**attempt)
        raise TransientError(
            f"store {self.url!r}, object {path!r}: {self._TRIES} tries failed, the last with {failure!r}"
        ) from failure

    def _raise_if_final(self, error: BaseException, path: str) -> None:
        if isinstance(error, StoreError):
            raise error
        bucket = self._root.partition("/")[0]
        code = _code(error)
        if code == "NoSuchBucket" or (not path and isinstance(error, FileNotFoundError)):
            raise StoreError(
                f"store {self.url!r}: bucket {bucket!r} does not exist. Create it, or correct the URL"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"store {self.url!r}: object {path!r} does not exist") from error
        if isinstance(error, PermissionError) or code in (
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
        ):
            raise StoreError(
                f"store {self.url!r}: access to {path!r} is refused ({code or error}). Check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the bucket's policy"
            ) from error
        if type(error).__name__ == "NoCredentialsError":
            raise StoreError(
                f"store {self.url!r}: there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{error.filename or path}: no space is left on this machine. "
                "Free some, then give the same command again"
            ) from error


def _check_size(path: str, body: bytes) -> None:
    if len(body) > MAX_CREATE_BYTES:
        raise ValueError(
            f"{path}: {len(body)} bytes cannot be written conditionally, the largest body has {MAX_CREATE_BYTES} bytes"
        )


def _kind(path: str) -> str:
    """Return the kind of an object in the names of failpoints: its stage, or which record of a run it is."""
    parts = path.split("/")
    return parts[1] if parts[0] == "artifacts" else (parts[2] if parts[0] == "runs" else parts[0]).partition(".")[0]


def _code(error: BaseException | None) -> str | None:
    """Return the S3 error code behind an s3fs exception."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code: str | None = response.get("Error", {}).get("Code")
            return code
        error = error.__cause__
    return None
