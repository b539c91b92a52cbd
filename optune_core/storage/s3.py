"""S3 as a store."""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from optune_core.errors import DiskFull, StoreError, TransientError
from optune_core.process.failpoints import reach
from optune_core.storage.objects import MAX_CREATE_BYTES, Entry, kind_of

T = TypeVar("T")


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
        reach(f"create.before/{kind_of(path)}")

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
        reach(f"create.after/{kind_of(path)}")
        return stored

    def swap(self, path: str, expected: bytes | None, body: bytes) -> bool:
        if expected is None:
            return self.create(path, body) == body
        _check_size(path, body)
        reach(f"swap.before/{kind_of(path)}")

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
        reach(f"swap.after/{kind_of(path)}")
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
        reach(f"upload.before/{kind_of(path)}")
        self._try(path, lambda: self._fs.put_file(str(file), self._key(path)))
        reach(f"upload.after/{kind_of(path)}")

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


def _code(error: BaseException | None) -> str | None:
    """Return the S3 error code behind an s3fs exception."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code: str | None = response.get("Error", {}).get("Code")
            return code
        error = error.__cause__
    return None
