"""The human study: which pairs are asked about, who sees them how, and what the ratings come to."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from optune_core.data.prompts import as_messages
from optune_core.data.schemas import RESPONSES, STUDY_PAIRS, read_table, write_table
from optune_core.errors import DataError, StoreError, StudyError
from optune_core.storage import ArtifactStore, Ledger, Ref, Work, open_objects
from optune_core.storage.canonical import digest
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.studies import StudyLedger
from optune_core.study import sessions as sessions_module
from optune_core.study.agreement import krippendorff_alpha
from optune_core.study.assignment import Assigned, assign
from optune_core.study.create import FILE, create_study, open_study
from optune_core.study.pairing import asked_pairs, comparisons, pair_up
from optune_core.study.results import standing_ratings, summarise
from optune_core.study.sessions import Participant, Sessions
from optune_core.study.sources import Answer, Source, of_file
from optune_core.study.web import study_app

Row = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


def source(name: str, **answers: str) -> Source:
    return Source(name, {}, {prompt: Answer(f"prompt {prompt}", response) for prompt, response in answers.items()})


def file_of(folder: Path, name: str, responses: Sequence[str]) -> tuple[str, str]:
    rows = [{"prompt": f"Question {number}?", "response": response} for number, response in enumerate(responses)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name, str(path)


def study_of_files(store: ArtifactStore, folder: Path, prompts: int = 10, study: str = "table4") -> Row:
    files = [file_of(folder, name, [f"{name} {n}" for n in range(prompts)]) for name in ("ours", "full", "chance")]
    return create_study(store, study, [], files, 50, None)


# Which pairs are asked about.


def test_every_prompt_has_an_outcome() -> None:
    ours = source("ours", a="yes", b="same ", c=" ", d="only mine", e="x", f="y")
    theirs = source("theirs", a="no", b=" same", c="text", g="only theirs", e="z", f="w")
    rows = pair_up([(ours, theirs)], 2, seed="s")
    outcomes = {row["prompt_id"]: row["outcome"] for row in rows}
    assert {name: outcomes[name] for name in "bcdg"} == {
        "b": "identical",
        "c": "empty",
        "d": "missing",
        "g": "missing",
    }
    assert Counter(outcomes[name] for name in "aef") == {"asked": 2, "not_drawn": 1}
    assert [pair.number for pair in asked_pairs(rows)] == [0, 1]


TEXTS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["", "one", "two"]))


@given(TEXTS, TEXTS, st.integers(1, 9), st.text())
def test_no_prompt_is_lost_and_only_different_responses_are_asked_about(
    ours: dict[str, str], theirs: dict[str, str], prompts: int, seed: str
) -> None:
    rows = pair_up([(source("ours", **ours), source("theirs", **theirs))], prompts, seed)
    assert sorted(row["prompt_id"] for row in rows) == sorted({*ours, *theirs})
    usable = {
        name for name in ours.keys() & theirs.keys() if ours[name] and theirs[name] and ours[name] != theirs[name]
    }
    asked = asked_pairs(rows)
    assert {pair.prompt_id for pair in asked} <= usable
    assert len(asked) == min(prompts, len(usable))


def test_comparisons_ask_about_the_same_prompts() -> None:
    names = [f"p{number}" for number in range(30)]
    sources = [source(name, **{prompt: f"{name} {prompt}" for prompt in names}) for name in ("ours", "full", "chance")]
    pairs = asked_pairs(pair_up(comparisons(sources, None), 10, seed="s"))
    asked = [{pair.prompt_id for pair in pairs if pair.baseline == name} for name in ("full", "chance")]
    assert asked[0] == asked[1] and len(asked[0]) == 10
    other = asked_pairs(pair_up(comparisons(sources, None), 10, seed="another"))
    assert {pair.prompt_id for pair in other} != asked[0]


def test_the_first_is_compared_with_each_other_one_or_all_others_with_the_baseline() -> None:
    sources = [source("a"), source("b"), source("c")]
    named = [[(x.name, y.name) for x, y in comparisons(sources, baseline)] for baseline in (None, "b")]
    assert named == [[("a", "b"), ("a", "c")], [("a", "b"), ("c", "b")]]


# Creating.


def run_with_responses(store: ArtifactStore, run: str, texts: dict[str, Sequence[str]], iterations: int = 1) -> None:
    """A run's records, with the held-out responses of its last policy: prompt → samples."""
    rows = [
        {"prompt_id": digest(as_messages(prompt))[:32], "prompt": prompt, "sample": sample, "response": response}
        for prompt, samples in texts.items()
        for sample, response in enumerate(samples)
    ]
    with store.scratch() as folder:
        write_table(pa.Table.from_pylist(rows, schema=RESPONSES), RESPONSES, folder / "responses.parquet")
        ref = store.commit(Work("responses", 0, {"run": run}), folder).ref
    ledger = Ledger(store.objects, run)
    ledger.open({}, {})
    for t in range(iterations):
        ledger.commit_iteration(t, {"iteration": t, "artifacts": {}})
        ledger.commit_evaluation(t, {"responses": []})
    ledger.commit_evaluation(iterations, {"responses": [ref.to_json()]})


def test_runs_are_compared_by_what_their_last_policies_answered_first(store: ArtifactStore, tmp_path: Path) -> None:
    run_with_responses(store, "optune", {"Question 0?": ["good", "other sample"], "Question 9?": ["alone"]}, 3)
    run_with_responses(store, "full", {"Question 0?": ["bad", "good"]})
    record = create_study(store, "s", ["optune", "full"], [file_of(tmp_path, "gpt", ["best"])], 50, None)
    counts = [{"asked": 1, "missing": 1}] * 2
    assert [comparison["prompts"] for comparison in record["comparisons"]] == counts
    _, _, pairs = open_study(store, "s")
    shown = [(pair.policy_response, pair.baseline_response, pair.prompt) for pair in pairs]
    assert shown == [("good", "bad", "Question 0?"), ("good", "best", "Question 0?")]


def test_a_study_is_found_again_but_never_changed(store: ArtifactStore, tmp_path: Path) -> None:
    assert study_of_files(store, tmp_path) == study_of_files(store, tmp_path)
    with pytest.raises(StudyError, match="another name"):
        study_of_files(store, tmp_path, prompts=9)


def test_what_cannot_be_a_study_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    ours, theirs = file_of(tmp_path, "ours", ["a", "b"]), file_of(tmp_path, "theirs", ["a", " b "])
    for message, runs, files, baseline in [
        ("two or three", [], [ours], None),
        ("two or three", [], [ours, ours], None),
        ("none of the sources", [], [ours, theirs], "full"),
        ("no run 'absent'; its runs: none", ["absent"], [ours], None),
        (r"no prompt can be asked about \(2 identical\)", [], [ours, theirs], None),
    ]:
        with pytest.raises(StudyError, match=message):
            create_study(store, "s", runs, files, 50, baseline)
    Ledger(store.objects, "begun").open({}, {})
    with pytest.raises(StudyError, match="no iteration"):
        create_study(store, "s", ["begun"], [ours], 50, None)
    Ledger(store.objects, "begun").commit_iteration(0, {"artifacts": {}})
    with pytest.raises(StudyError, match="held_out above 0"):
        create_study(store, "s", ["begun"], [ours], 50, None)
    with pytest.raises(StudyError, match="not a valid name"):
        create_study(store, "../s", [], [ours, theirs], 50, None)
    with pytest.raises(StudyError, match="no study 's'; its studies: none"):
        open_study(store, "s")


def test_a_file_with_two_responses_to_a_prompt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n{"prompt": "q", "response": "b"}\n')
    with pytest.raises(DataError, match="row 2: another response"):
        of_file("twice", str(path))
    path.write_text('{"prompt": "q"}\n')
    with pytest.raises(DataError, match="no column 'response'"):
        of_file("twice", str(path))


def test_garbage_collection_keeps_studies(store: ArtifactStore, tmp_path: Path) -> None:
    record = study_of_files(store, tmp_path)
    pairs = Ref.from_json(record["pairs"])
    (tmp_path / "store" / "studies" / "table4" / ".study.json.0123").write_text("of a killed writer")
    garbage = find_garbage(store, grace_seconds=-60)
    assert [entry.path for entry in garbage.data] == ["studies/table4/.study.json.0123"]
    delete_garbage(store, garbage)
    assert len(asked_pairs(read_table(store.fetch(pairs) / FILE, STUDY_PAIRS).to_pylist())) == 20


# Who sees what.


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


def test_the_same_name_comes_back_to_the_same_pairs(store: ArtifactStore, tmp_path: Path) -> None:
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
    rows = standing_ratings(pairs, [anna], {anna.id: ledger.ratings(anna.id).read()})
    assert [(row["choice"], row["submissions"]) for row in rows] == [("second", 2), ("equal", 1)]


def test_servers_that_race_lose_nothing_and_stay_balanced(store: ArtifactStore, tmp_path: Path) -> None:
    """Each has its own view of the store, as processes do."""
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


def test_who_stays_away_leaves_unrated_pairs_to_others(
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


# What the ratings come to.

REPORT = """
1 2 3 3 2 1 4 1 2 * * *
1 2 3 3 2 2 4 1 2 5 * 3
* 3 3 3 2 3 4 2 2 5 1 *
1 2 3 3 2 4 4 1 2 5 1 *
"""


def test_alpha_is_that_of_the_published_examples() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): sections A (0.095) and C (0.743)."""
    two = zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True)
    assert krippendorff_alpha(list(two)) == pytest.approx(0.095, abs=5e-4)
    observers = [line.split() for line in REPORT.strip().splitlines()]
    units = [[value for value in unit if value != "*"] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


UNITS = st.lists(st.lists(st.sampled_from("wlt"), max_size=4), max_size=8)


@given(UNITS)
def test_alpha_depends_on_no_order_and_on_no_single_ratings(units: list[list[str]]) -> None:
    alpha = krippendorff_alpha(units)
    shuffled = [random.Random(0).sample(unit, len(unit)) for unit in reversed(units)]
    again = krippendorff_alpha([*shuffled, ["w"], []])
    assert (alpha is None) == (again is None)
    if alpha is not None and again is not None:
        assert alpha == pytest.approx(again)
        assert alpha <= 1
        assert (alpha == pytest.approx(1)) == all(len(set(unit)) <= 1 for unit in units)


def rating(position: int, pair: int, swapped: bool, choice: str, seconds: float | None = 1.0) -> Row:
    return {
        "position": position,
        "pair": pair,
        "swapped": swapped,
        "choice": choice,
        "seconds": seconds,
        "rated_at": 0.0,
    }


def test_results_by_hand() -> None:
    """Two prompts; prompt a: win, win, tie; prompt b: loss."""
    rows = pair_up([(source("ours", a="1", b="2"), source("full", a="3", b="4"))], 50, seed="s")
    pairs = asked_pairs(rows)
    (a,), (b,) = ([pair.number for pair in pairs if pair.prompt_id == name] for name in "ab")
    people = [Participant(name, name, 0.0, [Assigned(a, False), Assigned(b, False)]) for name in ("x", "y", "z")]
    ratings = {
        "x": [rating(0, a, False, "first"), rating(1, b, True, "first", 9.0)],
        "y": [rating(0, a, True, "first"), rating(0, a, True, "second", None)],
        "z": [rating(0, a, False, "equal")],
    }
    standing = standing_ratings(pairs, people, ratings)
    assert [row["outcome"] for row in standing] == ["win", "loss", "win", "tie"]
    assert [row["first"] for row in standing] == ["ours", "full", "full", "ours"]
    comparison = {"policy": "ours", "baseline": "full", "prompts": {"asked": 2}}
    summary = summarise([comparison], standing, {"x": 2, "y": 2, "z": 2})
    (row,) = summary["comparisons"]
    assert (row["ratings"], row["participants"], row["prompts_rated"]) == (4, 3, 2)
    assert row["counts"] == {"win": 2, "loss": 1, "tie": 1}
    # Drawing two of {a, b} with replacement gives a twice, b twice, or both: the extremes are inside 95 %.
    assert row["percent"]["win"] == {"value": 50, "low": 0, "high": pytest.approx(200 / 3)}
    assert row["percent"]["loss"] == {"value": 25, "low": 0, "high": 100}
    assert row["alpha"] == 0, "of one prompt that was rated more than once, agreement is that of chance"
    assert [each["median_seconds"] for each in summary["participants"]] == [5.0, None, 1.0]


def test_who_always_presses_one_button_is_pointed_out() -> None:
    base = {"policy": "ours", "baseline": "full", "outcome": "win", "seconds": 1.0}
    rows = [base | {"participant": name, "prompt_id": str(n), "choice": choice}
            for name, choices in (("always", "11111"), ("few", "1111"), ("varied", "11112"))
            for n, choice in enumerate({"1": "first", "2": "second"}[key] for key in choices)]  # fmt: skip
    people = summarise([], rows, {"always": 5, "few": 5, "varied": 5, "absent": 5})["participants"]
    assert [each["always"] for each in people] == ["first", None, None, None]


def test_without_ratings_nothing_is_claimed() -> None:
    summary = summarise([{"policy": "ours", "baseline": "full", "prompts": {"asked": 2}}], [], {})
    assert summary["comparisons"][0]["percent"] is None
    assert summary["comparisons"][0]["alpha"] is None


# The pages, without a browser.


@pytest.fixture
def client(store: ArtifactStore, tmp_path: Path) -> TestClient:
    hostile = ["</div><script>alert(1)</script>", "{{ 7 * 7 }}"]
    files = [file_of(tmp_path, "run-alpha", hostile), file_of(tmp_path, "run-beta", ["a", "b"])]
    create_study(store, "secret-title", [], files, 50, None)
    ledger, _, pairs = open_study(store, "secret-title")
    sessions = Sessions(ledger, pairs, 50)
    return TestClient(study_app("secret-title", sessions, pairs, ["localhost"]), base_url="http://localhost")


def token_of(page: str) -> str:
    return page.partition('name="token" value="')[2].partition('"')[0]


def test_pages_escape_texts_and_do_not_say_whose_they_are(client: TestClient) -> None:
    seen = [client.get("/").text, client.post("/join", data={"name": "<i>Eve</i>"}).text]
    for _ in range(2):
        page = client.get("/pair")
        seen.append(page.text)
        client.post(page.url.path, data={"choice": "equal", "token": token_of(page.text)})
    seen.append(client.get("/pair").text)
    everything = "".join(seen) + str(client.cookies)
    assert "Thank you, &lt;i&gt;Eve&lt;/i&gt;!" in seen[-1]
    assert "&lt;script&gt;alert(1)" in everything and "{{ 7 * 7 }}" in everything
    for hidden in ("<script>alert", "<i>Eve", "run-alpha", "run-beta", "secret-title", "policy", "baseline"):
        assert hidden not in everything


def test_only_the_participants_own_form_counts(client: TestClient, store: ArtifactStore) -> None:
    client.post("/join", data={"name": "eve"})
    token = token_of(client.get("/pair/1").text)
    good = {"choice": "first", "token": token, "shown_at": "0"}
    elsewhere = {"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}
    assert [client.post("/pair/1", data=good, headers=each).status_code for each in elsewhere] == [403, 403]
    assert client.post("/join", data={"name": "x"}, headers=elsewhere[0]).status_code == 403
    assert client.post("/pair/1", data=good | {"token": "0"}).status_code == 403
    assert client.post("/pair/1", data=good | {"choice": "neither"}).status_code == 400
    assert client.post("/pair/2", data=good).status_code == 400, "not yet shown"
    assert client.get("/pair/1", headers={"host": "evil.example"}).status_code == 400
    ledger, _, _ = open_study(store, "secret-title")
    (eve,) = ledger.participants.read()
    assert ledger.ratings(eve["id"]).read() == []
    assert client.post("/pair/1", data=good, headers={"origin": "http://localhost"}).url.path == "/pair/2"
    (saved,) = ledger.ratings(eve["id"]).read()
    assert (saved["choice"], saved["seconds"]) == ("first", None), "half a century is no time that was taken"


def test_who_is_not_known_starts_at_the_beginning(client: TestClient) -> None:
    client.cookies.set("participant", "0" * 32)
    for path in ("/pair", "/pair/1", "/guidelines", "/done"):
        assert client.get(path).url.path == "/"
    assert "1 to 64" in client.post("/join", data={"name": " "}).text


def test_a_choice_that_the_store_did_not_take_is_not_said_to_be_saved(
    client: TestClient, store: ArtifactStore, tmp_path: Path
) -> None:
    client.post("/join", data={"name": "eve"})
    page = client.get("/pair/1").text
    (tmp_path / "store" / "studies" / "secret-title" / "ratings").write_text("a file where a folder belongs")
    refused = client.post("/pair/1", data={"choice": "first", "token": token_of(page)})
    assert refused.status_code == 503
    assert "may not be saved" in refused.text
    ledger = StudyLedger(store.objects, "secret-title")
    with pytest.raises(StoreError):
        ledger.ratings(ledger.participants.read()[0]["id"]).append(lambda _: {})
