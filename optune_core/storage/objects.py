"""Objects under a root: whole, and created at most once. Two backends, the local disk and S3.

The promise that everything else rests on is `create`: of any number of racing creators exactly one wins, and
each of them learns whose bytes stand. It holds after lost answers too, because it compares the bytes that stand
with its own; so a body must be unique to its creator (manifests carry an attempt id).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from optune_core.errors import StoreError, TransientError

MAX_CREATE_BYTES = 1 << 20
"""Deciding objects stay single-part: conditional multipart completion is not atomic on any server tried."""


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

    def delete(self, path: str) -> None: ...

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
    objects.delete(path)
    if standing != [first, first, first]:
        raise StoreError(
            f"store {objects.url!r} ignores If-None-Match: a second writer replaced an existing object. "
            "Use a store with conditional writes, and keep bucket versioning off"
        )


class LocalObjects:
    """Files below a folder. An object appears whole (link of a synced temporary file) and survives a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def require(self) -> None:
        with self._errors(""):
            self.root.mkdir(parents=True, exist_ok=True)

    def create(self, path: str, body: bytes) -> bytes:
        target = self._file(path)
        with self._errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            with temporary.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)
            except FileExistsError:
                return target.read_bytes()
            finally:
                temporary.unlink()
            _sync_folder(target.parent)
        return body

    def read(self, path: str) -> bytes | None:
        with self._errors(path):
            try:
                return self._file(path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def upload(self, file: Path, path: str) -> None:
        target = self._file(path)
        with self._errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            try:
                os.link(file, temporary)  # the same disk: no second copy
            except OSError:
                shutil.copyfile(file, temporary)
            with temporary.open("rb") as copied:
                os.fsync(copied.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)

    def download(self, path: str, file: Path) -> None:
        with self._errors(path):
            shutil.copyfile(self._file(path), file)

    def names(self, prefix: str) -> list[str]:
        folder = self._file(prefix)
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def delete(self, path: str) -> None:
        self._file(path).unlink(missing_ok=True)

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
            raise StoreError(f"store {self.url!r}, object {path!r}: {name}: {error.strerror}") from error


class S3Objects:
    """Objects in a bucket, through s3fs. Credentials and endpoint come from the AWS environment variables."""

    _TRIES = 4

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._root = url.removeprefix("s3://")
        self._fs: Any = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)

    def require(self) -> None:
        # Some servers make a missing bucket at the first write, and a mistyped name would go unnoticed.
        bucket = self._root.partition("/")[0]
        self._try("", lambda: self._fs.call_s3("head_bucket", Bucket=bucket))

    def create(self, path: str, body: bytes) -> bytes:
        if len(body) > MAX_CREATE_BYTES:
            raise ValueError(f"{path}: {len(body)} bytes is too large to be created conditionally")
        failure: BaseException | None = None
        for attempt in range(self._TRIES):
            try:
                self._fs.pipe_file(self._key(path), body, mode="create")
                return body
            except Exception as error:
                # Refused, or unknown: an answer may have been lost on the way. What stands there decides.
                failure = error
                self._raise_if_final(error, path)
            standing = self.read(path)
            if standing is not None:
                return standing
            time.sleep(0.2 * 2**attempt)
        raise TransientError(f"store {self.url!r}: {path!r} could not be created: {failure}") from failure

    def read(self, path: str) -> bytes | None:
        def fetch() -> bytes | None:
            try:
                body: bytes = self._fs.cat_file(self._key(path))
                return body
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None

        body: bytes | None = self._try(path, fetch)
        return body

    def upload(self, file: Path, path: str) -> None:
        self._try(path, lambda: self._fs.put_file(str(file), self._key(path)))

    def download(self, path: str, file: Path) -> None:
        self._try(path, lambda: self._fs.get_file(self._key(path), str(file)))

    def names(self, prefix: str) -> list[str]:
        try:
            return sorted(entry.rsplit("/", 1)[-1] for entry in self._fs.ls(self._key(prefix), detail=False))
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        self._try(path, lambda: self._fs.rm_file(self._key(path)))

    def local_folder(self, path: str) -> Path | None:
        return None

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _try(self, path: str, call: Any) -> Any:
        for attempt in range(self._TRIES):
            try:
                return call()
            except Exception as error:
                self._raise_if_final(error, path)
                failure = error
            time.sleep(0.2 * 2**attempt)
        raise TransientError(f"store {self.url!r}, object {path!r}: {failure}") from failure

    def _raise_if_final(self, error: BaseException, path: str) -> None:
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


def _code(error: BaseException | None) -> str | None:
    """The S3 error code behind an s3fs exception."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code: str | None = response.get("Error", {}).get("Code")
            return code
        error = error.__cause__
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
