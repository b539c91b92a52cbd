"""Immutable artifacts: data written freely by any number of attempts, and committed once by a manifest.

A *work* names what an artifact is made from; its key is the digest of that. Everyone with the same work finds the
same artifact: a retry, a resumed run, another run with the same prefix. Committed bytes are never replaced, with one
exception: an artifact whose stored files turn out damaged is marked, counts as absent from then on, and the next
commit of the same work replaces its manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from optune_core import __version__
from optune_core.errors import CorruptArtifact, StoreError, TransientError
from optune_core.storage.canonical import digest, file_digest
from optune_core.storage.manifest import Manifest, Ref, Work
from optune_core.storage.objects import Objects

_PARALLEL_TRANSFERS = 4
_ID = re.compile(r"[a-z0-9][a-z0-9-]*")
_COMMIT_ROUNDS = 5
"""Rounds in which a commit tries to replace a damaged one. A second round is rare, a third points to a broken disk."""


class _TornManifest(CorruptArtifact):
    """A manifest is incomplete: the disk confirmed a write that it then lost."""


class ArtifactStore:
    """Artifacts below `<root>/artifacts/<stage>/<key>/`, with a local cache where the backend is not a disk."""

    def __init__(
        self,
        objects: Objects,
        cache: Path | None = None,
        on_commit: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        """
        Args:
            objects: backend that holds the artifacts.
            cache: folder for downloaded copies; default: OPTUNE_CACHE, else ~/.cache/optune.
            on_commit: called with the manifest after every commit through this store.
        """
        self.objects = objects
        self._on_commit = on_commit
        self._cache = cache or Path(os.environ.get("OPTUNE_CACHE", "~/.cache/optune")).expanduser()
        self._verified: dict[tuple[str, str], dict[tuple[str, ...], Path]] = {}

    def find(self, work: Work) -> Manifest | None:
        """Return the committed artifact of this work, or None if it was not made yet or is marked as damaged."""
        try:
            found = self.committed(work.stage, work.key)
        except _TornManifest:
            return None
        return None if found is not None and self._is_damaged(found) else found

    def manifest(self, ref: Ref) -> Manifest:
        """Return the manifest behind a reference.

        Raises:
            StoreError: no artifact is committed under this stage and key.
            CorruptArtifact: the committed artifact has another digest than the reference.
        """
        # A reference is made from a commit, so a missing manifest is more likely a stale answer than a deletion.
        manifest = self.committed(ref.stage, ref.key) or self.committed(ref.stage, ref.key)
        if manifest is None:
            raise StoreError(
                f"store {self.objects.url!r} holds no artifact {ref.stage}/{ref.key}, which was committed: it must "
                "have been deleted. Restore it, or start a new run (--new-run), which makes it again"
            )
        if manifest.ref.digest != ref.digest:
            raise CorruptArtifact(
                f"artifact {ref.stage}/{ref.key} has the digest {manifest.ref.digest}, but the reference to it has "
                f"{ref.digest}: it was replaced after the reference was recorded. Start a new run (--new-run)"
            )
        return manifest

    def committed(self, stage: str, key: str) -> Manifest | None:
        """Return the committed artifact of a stage and key, or None. Unlike `find`, also one marked as damaged.

        Raises:
            CorruptArtifact: the object in the manifest's place is not the manifest of this artifact.
        """
        path = f"{self._base(stage, key)}/manifest.json"
        body = self.objects.read(path)
        if body is None:
            return None
        try:
            manifest = Manifest.from_bytes(body)
        except (ValueError, KeyError, TypeError) as error:
            raise _TornManifest(f"{path} in {self.objects.url!r} is not a manifest: {error!r}") from error
        for file in manifest.files:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise CorruptArtifact(
                    f"{path} in {self.objects.url!r} names {file!r}, which is outside the artifact's own folder"
                )
        if (manifest.ref.stage, manifest.ref.key) != (stage, key) or not manifest.attempt.isalnum():
            raise CorruptArtifact(f"{path} in {self.objects.url!r} is not the manifest of this artifact")
        return manifest

    def location(self, ref: Ref) -> str:
        """Return the folder of an artifact's files, as a path or URL for people."""
        return f"{self.objects.url}/{self._base(ref.stage, ref.key)}/{self.manifest(ref).attempt}"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make an empty local folder to build an artifact in, and remove it at the end of the block."""
        staging = self.objects.local_folder("scratch") or self._cache / "scratch"
        staging.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self,
        work: Work,
        folder: Path,
        *,
        metrics: Mapping[str, Any] | None = None,
        timing: Mapping[str, float] | None = None,
    ) -> Manifest:
        """Store the files below `folder` and commit them as the artifact of `work`.

        Promise: a work has at most one commit at any time, and all its bytes are stored before the commit. If
        another attempt committed first, its manifest is returned and this attempt's data is never read.

        Args:
            work: origin of the artifact.
            folder: local folder; the files may be hard-linked, so they must not be changed afterwards.
            metrics: facts about the result.
            timing: durations in seconds.

        Returns:
            The committed manifest: this attempt's or an earlier one's.

        Raises:
            StoreError: the store refused; nothing is committed by this attempt.
            TransientError: the store could not be reached; if there is a commit, it is complete.
        """
        attempt = uuid.uuid4().hex
        files = {
            path.relative_to(folder).as_posix(): (path.stat().st_size, file_digest(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        base = self._base(work.stage, work.key)
        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            for upload in [
                pool.submit(self.objects.upload, folder / path, f"{base}/{attempt}/{path}") for path in files
            ]:
                upload.result()
        manifest = Manifest(
            ref=Ref(work.stage, work.key, _files_digest(files)),
            version=work.version,
            params=dict(work.params),
            parents=dict(work.parents),
            attempt=attempt,
            files=files,
            metrics=dict(metrics or {}),
            timing=dict(timing or {}),
            code_version=__version__,
            committed_at=time.time(),
        )
        path, body = f"{base}/manifest.json", manifest.to_bytes()
        committed = self.objects.create(path, body)
        for _ in range(_COMMIT_ROUNDS):
            if (found := self.find(work)) is not None:
                self._on_commit(found)
                return found
            # The commit is damaged: this attempt's manifest replaces it, unless another attempt's already did.
            self.objects.swap(path, committed, body)
            committed = self.objects.read(path) or self.objects.create(path, body)
        raise TransientError(
            f"artifact {work.stage}/{work.key} was found damaged {_COMMIT_ROUNDS} times in a row right after it was "
            f"committed: check the disk or the server of store {self.objects.url!r}"
        )

    def discard(self, ref: Ref) -> None:
        """Delete an artifact that nothing refers to. Its manifest goes first, so that no reader finds a part of it."""
        manifest = self.committed(ref.stage, ref.key)
        if manifest is None:
            return
        base = self._base(ref.stage, ref.key)
        self.objects.delete(f"{base}/manifest.json")
        for path in manifest.files:
            self.objects.delete(f"{base}/{manifest.attempt}/{path}")
        self._verified.pop((ref.stage, ref.key), None)

    def fetch(self, ref: Ref, *only: str) -> Path:
        """Return a local folder with the artifact's files, each verified against the manifest once a process.

        A damaged artifact is marked, so that `find` no longer returns it and its stage makes it again.

        Args:
            ref: the artifact.
            only: patterns of the files to read, such as `model/*`, subfolders included; default: all. Other files
                are neither downloaded nor verified. They may be in the folder nevertheless, and must not be read.

        Raises:
            CorruptArtifact: a file's size or digest differs from the committed one; the message names the file.
            StoreError: no artifact is committed under this stage and key.
        """
        patterns = only or ("*",)
        known = self._verified.setdefault((ref.stage, ref.key), {})
        for earlier in (patterns, ("*",)):
            if earlier in known:
                return known[earlier]
        manifest = self.manifest(ref)
        files = [path for path in manifest.files if any(fnmatchcase(path, pattern) for pattern in patterns)]
        data = f"{self._base(ref.stage, ref.key)}/{manifest.attempt}"
        folder = self.objects.local_folder(data)
        try:
            if folder is None:
                folder = self._download(manifest, data, files)
            else:
                for path in files:
                    _verify(manifest, folder, path)
        except CorruptArtifact as damage:
            self.objects.create(self._mark(manifest), str(damage).encode())
            raise
        known[patterns] = folder
        return folder

    def read(self, ref: Ref, file: str) -> bytes:
        """Return the bytes of one small file of an artifact, verified, without fetching the other files.

        Raises:
            CorruptArtifact: the file is missing, or its bytes differ from the committed ones.
            StoreError: no artifact is committed under this stage and key, or it has no such file.
        """
        manifest = self.manifest(ref)
        if file not in manifest.files:
            raise StoreError(
                f"artifact {ref.stage}/{ref.key} has no file {file!r}: its files are {', '.join(manifest.files)}"
            )
        body = self.objects.read(f"{self._base(ref.stage, ref.key)}/{manifest.attempt}/{file}")
        if body is None or hashlib.sha256(body).hexdigest() != manifest.files[file][1]:
            raise CorruptArtifact(
                f"artifact {ref.stage}/{ref.key}: file {file!r} is missing or has other bytes than were committed"
            )
        return body

    def _is_damaged(self, manifest: Manifest) -> bool:
        return self.objects.read(self._mark(manifest)) is not None

    def _mark(self, manifest: Manifest) -> str:
        return f"{self._base(manifest.ref.stage, manifest.ref.key)}/{manifest.attempt}.damaged"

    def _download(self, manifest: Manifest, data: str, files: list[str]) -> Path:
        """Complete the copy in the cache, and return its folder.

        Files enter the cache complete and verified, even if several processes download the same artifact. Of the
        processes of this machine that need it at the same time, such as engines side by side, one downloads it.
        """
        ref = manifest.ref
        target = self._cache / "artifacts" / ref.stage / ref.key / manifest.attempt
        target.mkdir(parents=True, exist_ok=True)

        def complete(path: str) -> None:
            with suppress(CorruptArtifact):
                return _verify(manifest, target, path)
            with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as temporary:
                fresh = Path(temporary) / path
                fresh.parent.mkdir(parents=True, exist_ok=True)
                self._download_file(f"{data}/{path}", fresh)
                try:
                    _verify(manifest, Path(temporary), path)
                except CorruptArtifact:  # perhaps the transfer was cut short: damaged is only what differs twice
                    self._download_file(f"{data}/{path}", fresh)
                    _verify(manifest, Path(temporary), path)
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                fresh.replace(target / path)

        def each(call: Callable[[str], None]) -> None:
            with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
                list(pool.map(call, files))

        while True:
            with suppress(CorruptArtifact):
                each(lambda path: _verify(manifest, target, path))
                return target
            with _first_at(target) as first:
                if first:
                    each(complete)
                    return target

    def _download_file(self, path: str, file: Path) -> None:
        try:
            self.objects.download(path, file)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # `_verify` reports a missing file
                raise

    def keys(self, stage: str) -> list[str]:
        """List the keys below a stage, committed or not. For display only, since it rests on a listing."""
        return self.objects.names(self._base(stage, "key").removesuffix("/key"))

    def _base(self, stage: str, key: str) -> str:
        if not (_ID.fullmatch(stage) and _ID.fullmatch(key)):
            raise StoreError(f"{stage}/{key} is not the id of an artifact, which is a stage and a key in hex")
        return f"artifacts/{stage}/{key}"


@contextmanager
def _first_at(folder: Path) -> Iterator[bool]:
    """Lock a folder among the processes of this machine; yield True to the first holder.

    Later holders wait until the one before them left the block or died, and get False.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = True
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_EX)
            first = False
        yield first
    finally:
        os.close(handle)


def _files_digest(files: Mapping[str, tuple[int, str]]) -> str:
    return digest(sorted([path, size, sha] for path, (size, sha) in files.items()))


def _verify(manifest: Manifest, folder: Path, path: str) -> None:
    file, (size, sha) = folder / path, manifest.files[path]
    where = f"{manifest.ref.stage}/{manifest.ref.key}: file {path!r}"
    if not file.is_file():
        raise CorruptArtifact(f"artifact {where} is missing")
    if file.stat().st_size != size:
        raise CorruptArtifact(f"artifact {where} has {file.stat().st_size} bytes, {size} were committed")
    if file_digest(file) != sha:
        raise CorruptArtifact(f"artifact {where} has other bytes than were committed (SHA-256 differs)")
