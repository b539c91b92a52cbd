"""Records of human studies: what is asked, who takes part, and every choice that was made.

All of them are objects created once, so a choice that was acknowledged survives whatever happens to the server, and
any number of servers may hold the same study: they agree by who created an object first.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optune_core.errors import StudyError
from optune_core.parts.names import validate_name
from optune_core.storage.canonical import canonical_json
from optune_core.storage.objects import Objects

Record = dict[str, Any]


class Log:
    """JSON records below a prefix: 0000.json, 0001.json, … without a gap, each created once and never changed.

    A record is durable when `append` returns. Appenders that race, in however many processes, get numbers of their
    own. Reading goes from 0 up to the first gap and needs no listing; what was read once is kept.
    """

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix
        self._known: list[Record] = []
        self._lock = threading.Lock()

    def read(self) -> list[Record]:
        """All records, those of other processes included."""
        with self._lock:
            self._catch_up()
            return list(self._known)

    def append(self, make: Callable[[Sequence[Record]], Record | None]) -> None:
        """Add the record that `make` returns for the ones before it, with a unique `id`; nothing if it returns None.

        `make` is asked again where another appender came first.

        Raises:
            StoreError, TransientError: the record does not stand, or it is not known whether it does.
        """
        with self._lock:
            while True:
                self._catch_up()
                if (made := make(self._known)) is None:
                    return
                # The id tells our bytes from another's, when an answer of the store was lost on the way.
                record = made | {"id": uuid.uuid4().hex}
                body = canonical_json(record)
                if self._objects.create(self._path(len(self._known)), body) == body:
                    self._known.append(record)
                    return

    def _catch_up(self) -> None:
        while (body := self._objects.read(self._path(len(self._known)))) is not None:
            self._known.append(json.loads(body))

    def _path(self, number: int) -> str:
        return f"{self._prefix}/{number:04d}.json"


class StudyLedger:
    """Records of one study below `<root>/studies/<study>/`."""

    def __init__(self, objects: Objects, study: str) -> None:
        try:
            validate_name(study)
        except ValueError as error:
            raise StudyError(f"study {error}") from error
        self.objects = objects
        self.study = study
        self.participants = Log(objects, f"{self._base}/participants")
        self._ratings: dict[str, Log] = {}

    def create(self, record: Mapping[str, Any]) -> None:
        """Create the study, or find it created with the same record.

        Raises:
            StudyError: a study of this name asks something else.
        """
        body = canonical_json(dict(record))
        if self.objects.create(f"{self._base}/study.json", body) != body:
            raise StudyError(
                f"study {self.study!r} in {self.objects.url!r} exists and asks about other pairs: a study never "
                "changes, so give the new one another name"
            )

    def record(self) -> Record | None:
        """What the study was created with, or None if there is no such study."""
        body = self.objects.read(f"{self._base}/study.json")
        return None if body is None else json.loads(body)

    def ratings(self, participant: str) -> Log:
        """The choices of a participant, in the order of making.

        Args:
            participant: the `id` of a record of `participants`.
        """
        return self._ratings.setdefault(participant, Log(self.objects, f"{self._base}/ratings/{participant}"))

    @property
    def _base(self) -> str:
        return f"studies/{self.study}"


def list_studies(objects: Objects) -> list[str]:
    """Names of the studies in a store."""
    return objects.names("studies")
