"""Pairs that reward models are trained on, and responses that they can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data.model_folder import Model
from optune_core.data.schemas import RESPONSES, write_table
from optune_core.errors import DataError, ModelError
from optune_core.process.progress import silent
from optune_core.rewards.classifier_scorer import ClassifierScorer
from optune_core.rewards.reward import Conversation
from optune_core.rewards.trained import FilePairs, LabelledPairs, TrainedReward
from optune_core.stages import model, preferences, reward_model
from optune_core.stages.launch import find_all
from optune_core.storage import ArtifactStore, Manifest, Work, open_objects
from tests.tiny import build_model

POSITIONS = 512
"""Largest number of tokens that the tiny model reads."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


def pairs_of(lengths: list[int]) -> list[dict[str, str]]:
    """Return one pair a prompt, with chosen responses of these numbers of words."""
    return [
        {"prompt": f"Question {number}?", "chosen": "word " * length, "rejected": f"no {number}"}
        for number, length in enumerate(lengths)
    ]


def train(store: ArtifactStore, tiny: Path, folder: Path, lengths: list[int], **changes: object) -> Manifest:
    """Commit pairs with such chosen responses and train a reward model on them."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs_of(lengths)))
    source = {"type": "file", "source": {"type": "file", "path": str(path)}}
    reward = TrainedReward.model_validate({"model": str(tiny / "policy"), "pairs": source} | changes)
    labelled = preferences.Spec(pairs=reward.pairs, held_out_fraction=0.25, seed=0, responses=[])
    backbone = model.Spec(model=Model(model=reward.model), role="backbone")
    preferences.run(store, labelled, silent)
    model.run(store, backbone, silent)
    spec = reward_model.Spec(
        reward=reward,
        seed=0,
        backbone=made(store, "model", backbone).ref,
        preferences=made(store, "preferences", labelled).ref,
    )
    reward_model.run(store, spec, silent)
    return made(store, "reward-model", spec)


def made(store: ArtifactStore, stage: str, spec: Any) -> Manifest:
    (manifest,) = find_all(store, stage, spec) or []
    return manifest


@pytest.mark.parametrize("changes", [{"max_tokens": 128}, {}], ids=["over max_tokens", "over the model's positions"])
def test_pairs_that_are_too_long_are_left_out_and_counted(
    store: ArtifactStore, tiny: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    lengths = [10] * 16
    complete = train(store, tiny, tmp_path, lengths, **changes).metrics
    assert (complete["pairs"], complete["held_out_pairs"], complete["too_long_pairs"]) == (12, 4, 0)
    part = train(store, tiny, tmp_path, [POSITIONS if n % 2 else 10 for n in range(16)], **changes).metrics
    assert part["pairs"] + part["held_out_pairs"] == 8
    assert part["too_long_pairs"] == 8


def test_training_without_any_pair_that_is_short_enough_is_refused(
    store: ArtifactStore, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"none of the pairs to train on fits into 64 tokens.*16 of all 16 pairs"):
        train(store, tiny, tmp_path, [100] * 16, max_tokens=64)
    assert not list((tmp_path / "store").glob("artifacts/reward-model/*/manifest.json"))


def test_a_response_longer_than_the_reward_model_reads_is_refused(tmp_path: Path) -> None:
    scorer = ClassifierScorer(build_model(tmp_path / "reward", labels=1), batch_size=4, dtype="float32")
    question = [{"role": "user", "content": "Why?"}]
    short, long = (Conversation("Why?", question, "word " * count) for count in (10, POSITIONS))
    assert len(scorer.score([short], lambda done: None)) == 1
    with pytest.raises(ModelError, match=rf"reads {POSITIONS} tokens at most.*'Why\?'.*lower prompts.max_tokens"):
        scorer.score([short, long], lambda done: None)


def test_rows_without_a_pair_are_counted(store: ArtifactStore, tmp_path: Path) -> None:
    rows = pairs_of([3] * 6)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[4]["chosen"] = ""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = FilePairs.model_validate({"source": {"type": "file", "path": str(path)}})
    spec = preferences.Spec(pairs=pairs, held_out_fraction=0.25, seed=0, responses=[])
    preferences.run(store, spec, silent)
    metrics = made(store, "preferences", spec).metrics
    assert (metrics["pairs"], metrics["dropped"]) == (4, 2)


def test_prompts_without_a_labelled_pair_are_counted(store: ArtifactStore) -> None:
    answers = {"a": ["one", "three"], "b": ["same", "same"], "c": ["", "full"], "d": ["x", "longer"]}
    rows = [
        {"prompt_id": name * 32, "prompt": name, "messages": [{"role": "user", "content": name}], "sample": sample}
        | {"response": text, "response_token_ids": [1], "finish_reason": "stop"}
        for name, texts in answers.items()
        for sample, text in enumerate(texts)
    ]
    with store.scratch() as folder:
        write_table(pa.Table.from_pylist(rows, schema=RESPONSES), RESPONSES, folder / "responses.parquet")
        shard = store.commit(Work("responses", 0, {}), folder).ref
    pairs = LabelledPairs(function="tests.rewards:brevity")
    spec = preferences.Spec(pairs=pairs, held_out_fraction=0.5, seed=0, responses=[shard])
    preferences.run(store, spec, silent)
    metrics = made(store, "preferences", spec).metrics
    assert (metrics["pairs"], metrics["prompts"], metrics["dropped"]) == (2, 2, 2)
