"""Committed checkpoints of a training: committed in the background, named by a head, and pruned.

A checkpoint is an ordinary artifact, committed once, with a key of (policy, step). The steps are not known in advance
and recovery never rests on a listing, so a head object names the newest two checkpoints. The head changes by
compare-and-swap, and only forward: if two processes run the same training, the slower one cannot undo the progress of
the faster one. Only a checkpoint that turned out unusable is removed from the head.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from optune_core.errors import DiskFull, StoreError, TransientError
from optune_core.process.failpoints import reach
from optune_core.storage import ArtifactStore, Ref, Work
from optune_core.storage.canonical import canonical_json

VERSION = 2
KEPT = 2
"""Number of checkpoints that are kept: one more than needed, in case the newest turns out damaged."""

_log = logging.getLogger(__name__)


class Checkpoints:
    """Committed checkpoints of one policy's training.

    A context manager: leaving it waits for the commit in flight, because its files are deleted afterwards.
    """

    def __init__(self, store: ArtifactStore, policy: Work) -> None:
        self._store = store
        self._policy = policy.key
        self._head = f"checkpoints/{policy.key}/head.json"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)

    def work(self, step: int) -> Work:
        """Return the work of a checkpoint: the trainer's state after `step`, which only training and step determine."""
        return Work("checkpoint", VERSION, {"policy": self._policy, "step": step})

    def newest(self, check: Callable[[Path], None]) -> tuple[int, Path] | None:
        """Return step and local folder of the newest usable checkpoint, or None if training starts from the beginning.

        A checkpoint that is damaged, missing or refused by `check` is discarded, removed from the head and logged.

        Args:
            check: raises CorruptArtifact for a folder from which training cannot continue.
        """
        while steps := self._steps():
            step = steps[0]
            try:
                found = self._store.find(self.work(step))
                if found is not None:
                    folder = self._store.fetch(found.ref)
                    check(folder)
                    _log.warning("training continues from the checkpoint of step %d", step)
                    return step, folder
                reason = "it is no longer in the store, or it was found damaged earlier"
            except DiskFull:  # a local condition, not a fault of the checkpoint
                raise
            except StoreError as error:
                reason = str(error)
            _log.warning("the checkpoint of step %d is not used: %s", step, reason)
            self._discard(step)
            self._move(lambda now, gone=step: [each for each in now if each != gone])  # type: ignore[misc]
        return None

    def commit(self, step: int, folder: Path) -> None:
        """Commit a checkpoint in the background, after waiting for the previous commit. Its folder is removed.

        If the store cannot be reached, this checkpoint is lost and training continues.

        Args:
            step: number of optimizer steps made.
            folder: files of the checkpoint.

        Raises:
            StoreError: the store refused the previous commit, so it would refuse the policy's as well.
        """
        self.wait()
        self._in_flight = self._thread.submit(self._commit, step, folder)

    def wait(self) -> None:
        """Wait for the commit in flight. Raises StoreError if the store refused it."""
        future, self._in_flight = self._in_flight, None
        try:
            if future is not None:
                future.result()
        except TransientError as error:
            _log.warning("a checkpoint was not committed: %s", error)

    def discard_all(self) -> None:
        """Delete all checkpoints, after the policy is committed. Those that cannot be deleted are left to `gc`."""
        try:
            for step in self._steps():
                self._discard(step)
            self._store.objects.delete(self._head)
        except (StoreError, TransientError) as error:
            _log.warning(
                "checkpoints of a finished training could not be deleted, `optune gc` removes them later: %s", error
            )

    def _commit(self, step: int, folder: Path) -> None:
        try:
            self._store.commit(self.work(step), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        before, after = self._move(lambda now: [step, *now][:KEPT] if not now or now[0] < step else now)
        reach("checkpoint.committed")
        if dropped := [each for each in {step, *before} if each not in after]:
            for each in dropped:
                self._discard(each)
            reach("checkpoint.pruned")

    def _discard(self, step: int) -> None:
        work = self.work(step)
        try:
            self._store.discard(Ref(work.stage, work.key, digest=""))  # regardless of its digest
        except (StoreError, TransientError) as error:
            _log.warning(
                "the checkpoint of step %d could not be deleted, `optune gc` removes it later: %s", step, error
            )

    def _move(self, change: Callable[[list[int]], list[int]]) -> tuple[list[int], list[int]]:
        """Change the steps that the head names. Returns the steps before and after the change."""
        while True:
            current = self._store.objects.read(self._head)
            before = _parse(current)
            after = change(before)
            if after == before:
                return before, after
            body = canonical_json({"steps": after, "writer": uuid.uuid4().hex})
            if self._store.objects.swap(self._head, current, body):
                return before, after

    def _steps(self) -> list[int]:
        return _parse(self._store.objects.read(self._head))


def _parse(head: bytes | None) -> list[int]:
    if head is None:
        return []
    try:
        return [int(step) for step in json.loads(head)["steps"]]
    except (ValueError, KeyError, TypeError) as error:
        _log.warning(
            "the head of a training's checkpoints cannot be read, so the training starts from the beginning: %r", error
        )
        return []
