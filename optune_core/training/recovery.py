"""Which checkpoints of a training there are: committed in the background, named by a head, pruned behind it.

A checkpoint is an ordinary artifact, committed once, keyed by (policy, step). Steps are not known beforehand and
recovery never rests on a listing, so a head names the newest two. It moves by compare-and-swap, and only forward: of
two runners of one training the slower one cannot take the faster one's progress away. It steps back over a checkpoint
only when that one turned out unusable.
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
"""Should the newest turn out damaged, there is one more."""

_log = logging.getLogger(__name__)


class Checkpoints:
    """The committed checkpoints of one policy's training.

    Used as a context: leaving it waits for the commit in flight, whose files are about to go.
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
        """The trainer's state after an optimizer step: no function of anything but the training and the step."""
        return Work("checkpoint", VERSION, {"policy": self._policy, "step": step})

    def newest(self, check: Callable[[Path], None]) -> tuple[int, Path] | None:
        """Step and local folder of the newest usable checkpoint; None: training starts from the beginning.

        One that is damaged, gone or refused by `check` is discarded and struck from the head, and named in the log.

        Args:
            check: raises CorruptArtifact for a folder that training cannot go on from.
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
                reason = "it is not in the store any more, or was found damaged before"
            except DiskFull:  # says nothing about the checkpoint
                raise
            except StoreError as error:
                reason = str(error)
            _log.warning("the checkpoint of step %d is not used: %s", step, reason)
            self._discard(step)
            self._move(lambda now, gone=step: [each for each in now if each != gone])  # type: ignore[misc]
        return None

    def commit(self, step: int, folder: Path) -> None:
        """Commit a checkpoint in the background, at most one at a time; its folder is removed.

        Waits for the one before it. A store that cannot be reached costs this checkpoint, not the training.

        Raises:
            StoreError: the previous commit was refused, so the policy's would be as well.
        """
        self.wait()
        self._in_flight = self._thread.submit(self._commit, step, folder)

    def wait(self) -> None:
        """Return when the commit in flight is done. Raises as `commit`."""
        future, self._in_flight = self._in_flight, None
        try:
            if future is not None:
                future.result()
        except TransientError as error:
            _log.warning("a checkpoint was not committed: %s", error)

    def discard_all(self) -> None:
        """Forget the training, whose policy is committed. What cannot be deleted now is left to garbage collection."""
        try:
            for step in self._steps():
                self._discard(step)
            self._store.objects.delete(self._head)
        except (StoreError, TransientError) as error:
            _log.warning("checkpoints of a finished training were left in the store: %s", error)

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
            self._store.discard(Ref(work.stage, work.key, digest=""))  # whatever stands there
        except (StoreError, TransientError) as error:
            _log.warning("the checkpoint of step %d was left in the store: %s", step, error)

    def _move(self, change: Callable[[list[int]], list[int]]) -> tuple[list[int], list[int]]:
        """Change the head's steps; returns those before and after."""
        while True:
            standing = self._store.objects.read(self._head)
            before = _parse(standing)
            after = change(before)
            if after == before:
                return before, after
            body = canonical_json({"steps": after, "writer": uuid.uuid4().hex})
            if self._store.objects.swap(self._head, standing, body):
                return before, after

    def _steps(self) -> list[int]:
        return _parse(self._store.objects.read(self._head))


def _parse(head: bytes | None) -> list[int]:
    if head is None:
        return []
    try:
        return [int(step) for step in json.loads(head)["steps"]]
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("the head of a training's checkpoints cannot be read, so it starts from the beginning: %r", error)
        return []
