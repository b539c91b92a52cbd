"""Participants and their choices: who joins gets pairs, and every choice is in the store before the next pair shows."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from optune_core.errors import StudyError
from optune_core.storage.studies import StudyLedger
from optune_core.study.assignment import Assigned, assign
from optune_core.study.pairing import Pair

Choice = Literal["first", "second", "equal"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
MAX_NAME = 64
"""Characters of a participant's name or code."""
_AWAY_SECONDS = 24 * 3600.0
"""After a day without a choice a participant's open pairs are given to others; whoever returns finds them all the
same."""


@dataclass(frozen=True)
class Participant:
    id: str
    """Unguessable: the browser shows it to continue."""
    name: str
    joined_at: float
    pairs: list[Assigned]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Participant:
        pairs = [Assigned(pair, swapped) for pair, swapped in record["pairs"]]
        return cls(record["id"], record["name"], record["joined_at"], pairs)


class Sessions:
    """The participants of one study."""

    def __init__(self, ledger: StudyLedger, pairs: Sequence[Pair], pairs_per_participant: int) -> None:
        self._ledger = ledger
        self._comparison = {pair.number: pair.baseline + "/" + pair.policy for pair in pairs}
        self._wanted = pairs_per_participant

    def join(self, name: str) -> Participant:
        """The participant of this name, who is added if new. Upper and lower case are the same.

        Raises:
            StudyError: no name, or one that is too long.
        """
        name = " ".join(unicodedata.normalize("NFC", name).split())
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise StudyError(f"A name or code has 1 to {MAX_NAME} printable characters, and yours had {len(name)}.")

        def new(standing: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
            before = [Participant.from_record(record) for record in standing]
            if _named(before, name) is not None:
                return None
            seed = f"{self._ledger.study}/{name.casefold()}"
            assigned = assign(self._load(before), self._comparison, self._wanted, seed)
            return {"name": name, "joined_at": time.time(), "pairs": [[each.pair, each.swapped] for each in assigned]}

        self._ledger.participants.append(new)
        joined = _named(self.participants(), name)
        assert joined is not None, "appended, or found"
        return joined

    def find(self, participant_id: str) -> Participant | None:
        """Who the browser says that they are."""
        return next((each for each in self.participants() if each.id == participant_id), None)

    def participants(self) -> list[Participant]:
        """All, in the order of joining."""
        return [Participant.from_record(record) for record in self._ledger.participants.read()]

    def choices(self, participant: Participant) -> dict[int, Choice]:
        """Position (from 0, in the participant's order) → what was chosen last there."""
        return {record["position"]: record["choice"] for record in self._ledger.ratings(participant.id).read()}

    def rate(self, participant: Participant, position: int, choice: Choice, seconds: float | None) -> None:
        """Record a choice; one of before for the same position is corrected. Durable on return.

        Raises:
            StoreError, TransientError: it could not be recorded, or not surely.
        """
        shown = participant.pairs[position]
        record = {
            "participant": participant.id,
            "position": position,
            "pair": shown.pair,
            "swapped": shown.swapped,
            "choice": choice,
            "seconds": seconds,
            "rated_at": time.time(),
        }
        self._ledger.ratings(participant.id).append(lambda _: record)

    def _load(self, participants: Sequence[Participant]) -> dict[int, int]:
        """How many participants have rated each pair, or are about to."""
        load = dict.fromkeys(self._comparison, 0)
        for participant in participants:
            ratings = self._ledger.ratings(participant.id).read()
            seen = max([participant.joined_at, *(record["rated_at"] for record in ratings)])
            at_work = time.time() - seen < _AWAY_SECONDS
            for pair in {each.pair for each in participant.pairs} if at_work else {each["pair"] for each in ratings}:
                load[pair] += 1
        return load


def _named(participants: Sequence[Participant], name: str) -> Participant | None:
    return next((each for each in participants if each.name.casefold() == name.casefold()), None)
