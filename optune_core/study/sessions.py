"""Participants and their choices: a participant who joins gets pairs, and every choice is stored before the next pair
is shown."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from optune_core.errors import StudyError
from optune_core.storage.studies import StudyLedger
from optune_core.study.assignment import Assigned, assign
from optune_core.study.pairing import StudyPair

Choice = Literal["first", "second", "equal"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
MAX_NAME = 64
"""Largest number of characters in a participant's name or code."""
_AWAY_SECONDS = 24 * 3600.0
"""Time without a choice after which a participant's open pairs no longer count as theirs when pairs are assigned to
others. A participant who returns later finds them nevertheless."""


@dataclass(frozen=True)
class Participant:
    """A participant with the pairs assigned to them."""

    id: str
    """Unguessable id, by which the browser identifies itself."""
    name: str
    joined_at: float
    pairs: list[Assigned]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Participant:
        pairs = [Assigned(pair, swapped) for pair, swapped in record["pairs"]]
        return cls(record["id"], record["name"], record["joined_at"], pairs)


class Sessions:
    """The participants of one study."""

    def __init__(self, ledger: StudyLedger, pairs: Sequence[StudyPair], pairs_per_participant: int) -> None:
        self._ledger = ledger
        self._comparison = {pair.number: pair.baseline + "/" + pair.policy for pair in pairs}
        self._wanted = pairs_per_participant

    def join(self, name: str) -> Participant:
        """Return the participant of this name, who is added if new. Upper and lower case are not distinguished.

        Raises:
            StudyError: the name is empty, too long, or has unprintable characters.
        """
        name = " ".join(unicodedata.normalize("NFC", name).split())
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise StudyError(
                f"A name or code needs 1 to {MAX_NAME} printable characters; yours has {len(name)}. Please change it."
            )

        def new(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
            before = [Participant.from_record(record) for record in records]
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
        """Return the participant with this id, or None."""
        return next((each for each in self.participants() if each.id == participant_id), None)

    def participants(self) -> list[Participant]:
        """Return all participants, in the order in which they joined."""
        return [Participant.from_record(record) for record in self._ledger.participants.read()]

    def choices(self, participant: Participant) -> dict[int, Choice]:
        """Return the current choice for each rated position (from 0, in the participant's order)."""
        return {record["position"]: record["choice"] for record in self._ledger.ratings(participant.id).read()}

    def rate(self, participant: Participant, position: int, choice: Choice, seconds: float | None) -> None:
        """Record a choice. It replaces an earlier one for the same position, and is durable on return.

        Args:
            participant: the participant.
            position: position of the pair in the participant's order, from 0.
            choice: the choice.
            seconds: time from showing the pair to the choice; None if unknown.

        Raises:
            StoreError, TransientError: the choice was not recorded, or it is not known whether it was.
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
        """Count the participants who have rated each pair, or will probably do so."""
        load = dict.fromkeys(self._comparison, 0)
        for participant in participants:
            ratings = self._ledger.ratings(participant.id).read()
            seen = max([participant.joined_at, *(record["rated_at"] for record in ratings)])
            active = time.time() - seen < _AWAY_SECONDS
            for pair in {each.pair for each in participant.pairs} if active else {each["pair"] for each in ratings}:
                load[pair] += 1
        return load


def _named(participants: Sequence[Participant], name: str) -> Participant | None:
    return next((each for each in participants if each.name.casefold() == name.casefold()), None)
