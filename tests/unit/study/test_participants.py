"""Participants of a human study: who sees which pairs, and what is kept of their choices."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.errors import StudyError
from optune_core.storage import ArtifactStore
from optune_core.study import sessions as sessions_module
from optune_core.study.assignment import assign
from optune_core.study.create import open_study
from optune_core.study.results import current_ratings
from optune_core.study.sessions import Sessions
from tests.unit.study.sources import study_of_files


@given(st.integers(1, 60), st.integers(1, 60), st.text(max_size=5))
def test_assignment_is_stable_and_its_sides_are_balanced(pairs: int, wanted: int, seed: str) -> None:
    load, comparison = dict.fromkeys(range(pairs), 0), {pair: "ab"[pair % 2] for pair in range(pairs)}
    assigned = assign(load, comparison, wanted, seed)
    assert assigned == assign(load, comparison, wanted, seed)
    assert len({each.pair for each in assigned}) == len(assigned) == min(pairs, wanted)
    for name in "ab":
        sides = Counter(each.swapped for each in assigned if comparison[each.pair] == name)
        assert abs(sides[True] - sides[False]) <= 1


def test_order_and_sides_differ_between_participants() -> None:
    load, comparison = dict.fromkeys(range(20), 0), dict.fromkeys(range(20), "a")
    first, second = (assign(load, comparison, 20, seed) for seed in ("study/anna", "study/ben"))
    assert [each.pair for each in first] != [each.pair for each in second]
    assert {each.pair: each.swapped for each in first} != {each.pair: each.swapped for each in second}
    firsts = Counter(assign(load, comparison, 20, str(seed))[0] for seed in range(400))
    assert len(firsts) == 40, "every pair, either way round, can come first"


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_pairs_get_about_equally_many_ratings(wanted: list[int]) -> None:
    load, comparison = dict.fromkeys(range(12), 0), dict.fromkeys(range(12), "a")
    for number, pairs in enumerate(wanted):
        for each in assign(load, comparison, pairs, str(number)):
            load[each.pair] += 1
        assert max(load.values()) - min(load.values()) <= 1


def sessions_of(store: ArtifactStore, wanted: int = 10, study: str = "table4") -> Sessions:
    ledger, _, pairs = open_study(store, study)
    return Sessions(ledger, pairs, wanted)


def test_a_returning_participant_gets_the_same_pairs(store: ArtifactStore, tmp_path: Path) -> None:
    study_of_files(store, tmp_path)
    anna = sessions_of(store).join("Anna  Lind")
    sessions_of(store).rate(anna, 0, "first", 2.5)
    again = sessions_of(store, wanted=3)
    assert again.join(" anna lind ") == anna == again.find(anna.id)
    assert again.choices(anna) == {0: "first"}
    assert len(again.join("Ben").pairs) == 3
    for nameless in ("", "  ", "x" * 65, "a\x00b"):
        with pytest.raises(StudyError, match="name or code"):
            again.join(nameless)


def test_a_correction_replaces_a_choice_and_both_are_kept(store: ArtifactStore, tmp_path: Path) -> None:
    study_of_files(store, tmp_path)
    sessions = sessions_of(store)
    anna = sessions.join("anna")
    for position, choice in [(0, "first"), (1, "equal"), (0, "second")]:
        sessions.rate(anna, position, choice, 1.0)  # type: ignore[arg-type]
    assert sessions.choices(anna) == {0: "second", 1: "equal"}
    ledger, _, pairs = open_study(store, "table4")
    rows = current_ratings(pairs, [anna], {anna.id: ledger.ratings(anna.id).read()})
    assert [(row["choice"], row["submissions"]) for row in rows] == [("second", 2), ("equal", 1)]


def test_racing_servers_lose_no_rating_and_stay_balanced(store: ArtifactStore, tmp_path: Path) -> None:
    """Each server has its own view of the store, as processes have."""
    study_of_files(store, tmp_path)
    barrier = threading.Barrier(6)

    def take_part(number: int) -> None:
        barrier.wait()
        sessions = sessions_of(store, wanted=5)
        mine, shared = sessions.join(f"p{number}"), sessions.join("shared")
        for position in range(5):
            sessions.rate(mine, position, "equal", None)
            sessions.rate(shared, position, "first", None)

    threads = [threading.Thread(target=take_part, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sessions = sessions_of(store)
    joined = sessions.participants()
    assert sorted(each.name for each in joined) == ["p0", "p1", "p2", "p3", "p4", "p5", "shared"]
    shown = Counter(each.pair for participant in joined for each in participant.pairs)
    assert len(shown) == 20 and set(shown.values()) == {1, 2}
    ledger, _, _ = open_study(store, "table4")
    assert [len(ledger.ratings(each.id).read()) for each in joined if each.name == "shared"] == [30]


def test_the_unrated_pairs_of_an_absent_participant_go_to_others(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_of_files(store, tmp_path)
    sessions = sessions_of(store, wanted=10)
    gone = sessions.join("gone")
    sessions.rate(gone, 0, "first", None)
    rated, unrated = gone.pairs[0].pair, {each.pair for each in gone.pairs[1:]}
    monkeypatch.setattr(sessions_module, "_AWAY_SECONDS", -1.0)
    chosen = {each.pair for each in sessions_of(store, wanted=19).join("next").pairs}
    assert rated not in chosen and unrated <= chosen
