"""Records of human studies: the pairs that are asked about, the participants, and every choice that was made.

All of them are objects created once. So an acknowledged choice survives whatever happens to the server, and any number
of servers may hold the same study: the first one to create an object wins, and the others read it.
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
from optune_core.storage.manifest import read_record
from optune_core.storage.objects import Objects

Record = dict[str, Any]


class RecordLog:
    """JSON records below a prefix: 0000.json, 0001.json, … without a gap, each created once and never changed.

    A record is durable when `append` returns. Appenders that race, in any number of processes, get different numbers.
    Reading goes from 0 up to the first gap and needs no listing; records that were read once are kept in memory.
    """

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix
        self._known: list[Record] = []
        self._lock = threading.Lock()

    def read(self) -> list[Record]:
        """Return all records, those of other processes included."""
        with self._lock:
            self._catch_up()
            return list(self._known)

    def append(self, make: Callable[[Sequence[Record]], Record | None]) -> None:
        """Append one record, with a unique `id`.

        Args:
            make: called with all records so far; returns the record to append, or None to append nothing. Called
                again where another appender came first.

        Raises:
            StoreError, TransientError: the record is not stored, or it is not known whether it is.
        """
        with self._lock:
            while True:
                self._catch_up()
                if (made := make(self._known)) is None:
                    return
                # With the id our bytes differ from everybody else's, even if an answer of the store was lost.
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
        self.participants = RecordLog(objects, f"{self._base}/participants")
        self._ratings: dict[str, RecordLog] = {}

    def create(self, record: Mapping[str, Any]) -> None:
        """Create the study, unless it exists with the same record.

        Raises:
            StudyError: a study of this name exists with another record.
        """
        body = canonical_json(dict(record))
        if self.objects.create(f"{self._base}/study.json", body) != body:
            raise StudyError(
                f"study {self.study!r} in {self.objects.url!r} exists and asks about other pairs, and a study never "
                "changes. Give the new study another name"
            )

    def record(self) -> Record | None:
        """Return the record that the study was created with, or None if the study does not exist."""
        body = self.objects.read(f"{self._base}/study.json")
        return None if body is None else read_record(body)

    def ratings(self, participant: str) -> RecordLog:
        """Return the log of a participant's choices, in the order in which they were made.

        Args:
            participant: `id` of a record of `participants`.
        """
        return self._ratings.setdefault(participant, RecordLog(self.objects, f"{self._base}/ratings/{participant}"))

    @property
    def _base(self) -> str:
        return f"studies/{self.study}"


def list_studies(objects: Objects) -> list[str]:
    """Return the names of the studies in a store."""
    return objects.names("studies")
