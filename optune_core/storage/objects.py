"""Objects under a root: whole, and created at most once. Two backends, the local disk and S3.

The promise that everything else rests on is `create`: of any number of racing creators exactly one wins, and
each of them learns whose bytes stand. It holds after lost answers too, because it compares the bytes that stand
with its own; so a body must be unique to its creator (manifests carry an attempt id).
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
"""Deciding objects stay single-part: conditional multipart completion is not atomic on any server tried."""


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it."""

    path: str
    size: int
    """Bytes."""
    modified: float
    """Unix time in seconds by the store's clock: compare it with `Objects.now` only."""


class Objects(Protocol):
    """Objects named by '/'-separated paths below one root URL."""

    url: str

    def require(self) -> None:
        """Raises StoreError unless the place that the URL names exists or may be made. Buckets are never made."""
        ...

    def create(self, path: str, body: bytes) -> bytes:
        """Create the object if nothing stands there. Returns the bytes that stand afterwards: ours, or the winner's.

        Raises StoreError if the backend refuses (permission, bucket), TransientError if no answer could be had.
        """
        ...

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        """Replace the object if its bytes are `expected` (None: if there is none). Returns whether ours stand.

        Of any number of racing swappers with the same `expected` at most one is told True, and exactly one if all
        are answered. `body` must be unique to its writer, so that a lost answer can be told from a lost race.

        Raises as `create`; after a TransientError ours may stand or not.
        """
        ...

    def refuses_stale_swap(self, path: str) -> bool:
        """Whether a write is refused whose object changed after its writer looked. Overwrites a probe to find out."""
        ...

    def read(self, path: str) -> bytes | None:
        """The object's bytes, or None if there is none."""
        ...

    def upload(self, file: Path, path: str) -> None:
        """Write a file of any size, replacing what stood there. The file must not be changed afterwards."""
        ...

    def download(self, path: str, file: Path) -> None:
        """Fetch an object of any size. Raises StoreError if it is not there."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Last path parts directly below a prefix, sorted. For display only: decisions never rest on a listing."""
        ...

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Every object below a prefix. For collecting garbage only: decisions about work never rest on a listing."""
        ...

    def now(self) -> float:
        """The store's clock, Unix time in seconds."""
        ...

    def delete(self, path: str) -> None:
        """Delete the object, if it is there."""
        ...

    def local_folder(self, path: str) -> Path | None:
        """The folder that holds these objects as files, where the backend is a disk; None elsewhere."""
        ...


def open_objects(url: str) -> Objects:
    """Open a store by URL or path.

    Raises:
        StoreError: the scheme is not one whose conditional writes are known to be exact.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return LocalObjects(Path(url.removeprefix("file://")).expanduser().absolute())
    if scheme == "s3":
        return S3Objects(url.rstrip("/"))
    raise StoreError(
        f"store {url!r}: scheme {scheme!r} has no create-if-absent that this project has verified; "
        "use a local folder or s3://bucket/prefix"
    )


def check_conditional_writes(objects: Objects) -> None:
    """Refuse a store on which the commit would not be exclusive, before any work is spent.

    Raises:
        StoreError: the store let a second writer overwrite an object, or cannot be written or read.
    """
    objects.require()
    path = f"probe/{uuid.uuid4().hex}"
    first, second = b"first " + path.encode(), b"second " + path.encode()
    standing = [objects.create(path, first), objects.create(path, second), objects.read(path)]
    swapped = [objects.swap(path, second, b"third"), objects.swap(path, first, second), objects.read(path)]
    exact = objects.refuses_stale_swap(path)
    objects.delete(path)
    advice = "Use a store with conditional writes, and keep bucket versioning off"
    if standing != [first, first, first]:
        raise StoreError(
            f"store {objects.url!r} ignores If-None-Match: a second writer replaced an existing object. {advice}"
        )
    if swapped != [False, True, second] or not exact:
        raise StoreError(f"store {objects.url!r} does not honour If-Match: no lease can be held in it. {advice}")


class LocalObjects:
    """Files below a folder. An object appears whole (link of a synced temporary file) and survives a crash."""

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
                if (standing := self.read(path)) is not None:  # else it was deleted meanwhile
                    return standing
            sync_folder(target.parent)
        reach(f"create.after/{kind}")
        return body

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        target, kind = self._file(path), _kind(path)
        reach(f"swap.before/{kind}")
        with self._errors(path):
            make_folder(self.root)
            with (self.root / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when its holder dies
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
        return True  # the lock is held from the look to the write

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
                os.link(file, temporary)  # the same disk: no second copy
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(file, temporary)
            os.utime(temporary)  # a link is as old as its file, and a collector of garbage goes by the age
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
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if file.is_file():
                    stat = file.stat()
                    yield Entry(file.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime)

    def now(self) -> float:
        # A network disk has a clock of its own, and that one stamps the files.
        with self._errors(""), beside(self.root / "clock", lambda temporary: write(temporary, b"")) as temporary:
            return temporary.stat().st_mtime

    def delete(self, path: str) -> None:
        target = self._file(path)
        with self._errors(path):
            target.unlink(missing_ok=True)
            for folder in target.parents:  # a disk, other than a bucket, keeps empty folders
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
                raise DiskFull(f"{where}. Free some space (`optune gc` removes what no run needs) and go on") from error
            raise StoreError(where) from error


class S3Objects:
    """Objects in a bucket, through s3fs. Credentials and endpoint come from the AWS environment variables."""

    _TRIES = 5
    _PAUSE_SECONDS = 0.3
    """Before the second try; doubled before each later one. A burst of errors longer than that fails the task,
    which is tried again after longer pauses."""
    _TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._root = url.removeprefix("s3://")
        self._fs: Any = fsspec.filesystem(
            "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=self._TIMEOUTS
        )
        self._fs.retries = 1  # tried again here, where an unknown outcome is looked up first

    def require(self) -> None:
        # Some servers make a missing bucket at the first write, and a mistyped name would go unnoticed.
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
                # Refused, or unknown: an answer may have been lost on the way. What stands there decides.
                standing, _ = self._read_with_tag(path)
                if standing is None:
                    raise
                return standing

        standing = self._try(path, attempt)
        reach(f"create.after/{_kind(path)}")
        return standing

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        if expected is None:
            return self.create(path, body) == body
        _check_size(path, body)
        reach(f"swap.before/{_kind(path)}")

        def attempt() -> bool:
            standing, tag = self._read_with_tag(path)
            if standing == body:  # an earlier answer was lost on the way
                return True
            if standing != expected:
                return False
            try:
                self._fs.pipe_file(self._key(path), body, IfMatch=tag)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return False  # deleted meanwhile
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
                continue  # a prefix that is empty by now: some servers keep it
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
        """The object's bytes and their ETag, from one answer."""
        from fsspec.asyn import sync

        bucket, _, key = self._key(path).partition("/")

        async def get() -> tuple[bytes, str]:
            answer = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as stream:
                body: bytes = await stream.read()
            return body, answer["ETag"].strip('"')  # one server tried compares it unquoted only

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
        raise TransientError(f"store {self.url!r}, object {path!r}: {failure!r}") from failure

    def _raise_if_final(self, error: BaseException, path: str) -> None:
        if isinstance(error, StoreError):
            raise error
        bucket = self._root.partition("/")[0]
        code = _code(error)
        if code == "NoSuchBucket" or (not path and isinstance(error, FileNotFoundError)):
            raise StoreError(
                f"store {self.url!r}: bucket {bucket!r} does not exist: create it, or correct the URL"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"store {self.url!r}: object {path!r} is not there") from error
        if isinstance(error, PermissionError) or code in (
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
        ):
            raise StoreError(
                f"store {self.url!r}: access to {path!r} refused ({code or error}): check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the bucket's policy"
            ) from error
        if type(error).__name__ == "NoCredentialsError":
            raise StoreError(
                f"store {self.url!r}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{error.filename or path}: no space is left: free some and go on") from error


def _check_size(path: str, body: bytes) -> None:
    if len(body) > MAX_CREATE_BYTES:
        raise ValueError(f"{path}: {len(body)} bytes is too large to be written conditionally")


def _kind(path: str) -> str:
    """What an object is to the layout, for the names of failpoints: a stage, or a record of a run."""
    parts = path.split("/")
    return parts[1] if parts[0] == "artifacts" else (parts[2] if parts[0] == "runs" else parts[0]).partition(".")[0]


def _code(error: BaseException | None) -> str | None:
    """The S3 error code behind an s3fs exception."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code: str | None = response.get("Error", {}).get("Code")
            return code
        error = error.__cause__
    return None
