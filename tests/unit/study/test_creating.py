"""Creation of a human study: which pairs are asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.data.prompts import as_messages
from optune_core.data.schemas import RESPONSES, STUDY_PAIRS, read_table, write_table
from optune_core.errors import DataError, StudyError
from optune_core.storage import ArtifactStore, Ledger, Work
from optune_core.storage.canonical import digest
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.study.create import FILE, create_study, open_study
from optune_core.study.pairing import asked_pairs, comparisons, pair_up
from optune_core.study.sources import of_file
from tests.sections import AnyConfig
from tests.unit.study.sources import file_of, source, study_of_files


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
def test_every_prompt_is_kept_and_only_different_responses_are_asked_about(
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


def test_sources_are_compared_with_the_first_one_or_with_the_baseline() -> None:
    sources = [source("a"), source("b"), source("c")]
    named = [[(x.name, y.name) for x, y in comparisons(sources, baseline)] for baseline in (None, "b")]
    assert named == [[("a", "b"), ("a", "c")], [("a", "b"), ("c", "b")]]


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
    ledger.open(AnyConfig(), {})
    for t in range(iterations):
        ledger.commit_iteration(t, {"iteration": t, "artifacts": {}})
        ledger.commit_held_out(t, {"responses": []})
    ledger.commit_held_out(iterations, {"responses": [ref]})


def test_runs_are_compared_by_the_first_samples_of_their_last_policies(store: ArtifactStore, tmp_path: Path) -> None:
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


def test_an_impossible_study_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    ours, theirs = file_of(tmp_path, "ours", ["a", "b"]), file_of(tmp_path, "theirs", ["a", " b "])
    for message, runs, files, baseline in [
        ("two or three", [], [ours], None),
        ("two or three", [], [ours, ours], None),
        ("not one of the sources", [], [ours, theirs], "full"),
        ("no run 'absent'; its runs: none", ["absent"], [ours], None),
        (r"no prompt can be asked about \(2 identical\)", [], [ours, theirs], None),
    ]:
        with pytest.raises(StudyError, match=message):
            create_study(store, "s", runs, files, 50, baseline)
    Ledger(store.objects, "begun").open(AnyConfig(), {})
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
    with pytest.raises(DataError, match="row 2: this prompt has another response"):
        of_file("twice", str(path))
    path.write_text('{"prompt": "q"}\n')
    with pytest.raises(DataError, match="no column 'response'"):
        of_file("twice", str(path))


def test_garbage_collection_keeps_studies(store: ArtifactStore, tmp_path: Path) -> None:
    record = study_of_files(store, tmp_path)
    pairs = record["pairs"]
    (tmp_path / "store" / "studies" / "table4" / ".study.json.0123").write_text("of a killed writer")
    garbage = find_garbage(store, grace_seconds=-60)
    assert [entry.path for entry in garbage.data] == ["studies/table4/.study.json.0123"]
    delete_garbage(store, garbage)
    assert len(asked_pairs(read_table(store.fetch(pairs) / FILE, STUDY_PAIRS).to_pylist())) == 20
