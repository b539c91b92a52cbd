"""The stages of the data plane on a store: selection, responses in shards, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data import row_groups
from optune_core.data.schemas import PROMPTS, REPLAY, RESPONSES, SCORES, only, read_table, write_table
from optune_core.history import HISTORY
from optune_core.selection import select
from optune_core.selection.registry import SELECTORS
from optune_core.stages import replay, selection
from optune_core.storage import ArtifactStore, Manifest, Ref, Work, open_objects
from tests.unit import naive

PROMPTS_OF_RUN, SAMPLES, SHARD = 101, 3, 10

Row = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setattr(row_groups, "ROW_GROUP", 16)
    return ArtifactStore(open_objects(str(tmp_path / "store")))


def put(store: ArtifactStore, stage: str, name: str, rows: list[Row], schema: pa.Schema, number: int) -> Ref:
    with store.scratch() as folder:
        write_table(pa.Table.from_pylist(rows, schema=schema), schema, folder / name)
        return store.commit(Work(stage, 0, {"number": number}), folder).ref


def rows_of(store: ArtifactStore, ref: Ref, name: str, schema: pa.Schema) -> list[Row]:
    return read_table(store.fetch(ref) / name, schema).to_pylist()


def prompts() -> list[Row]:
    return [
        {
            "prompt_id": f"{i * 7919 % 10007:032x}",
            "prompt": str(i),
            "messages": [{"role": "user", "content": str(i)}],
            "prompt_token_ids": list(range(i % 5)),
        }
        for i in range(PROMPTS_OF_RUN)
    ]


def answers(selected: list[Row], iteration: int) -> list[Row]:
    """K scored responses a prompt, of every kind."""
    rows = []
    for at, prompt in enumerate(selected):
        for sample in range(SAMPLES):
            number = (at * 5 + sample * 3 + iteration) % 11
            outcome = "empty" if number > 8 else "ok"
            answer = {"sample": sample, "response": str(number), "response_token_ids": [number // 2] * (number % 4)}
            score = {"reward": number / 4 if outcome == "ok" else None, "outcome": outcome}
            rows.append(prompt | answer | {"finish_reason": "stop", "policy_logps": -number / 8} | score)
    return rows


def advance(
    store: ArtifactStore, previous: Ref, iteration: int, selector: Any = "optune"
) -> tuple[Manifest, Manifest, list[Row]]:
    """Run selection and merge of one iteration. Returns (selection, D_t, scored responses)."""
    asked = selection.Spec(
        selector=SELECTORS.parse({"type": selector, "rho": 0.4}),
        seed=3,
        iteration=iteration,
        previous=previous,
    )
    selection.run(store, asked, lambda *_: None)
    selected = committed(store, selection.works(store, asked))
    rows = answers(rows_of(store, selected.ref, "selection.parquet", PROMPTS), iteration)
    size = SHARD * SAMPLES
    shards = [rows[first : first + size] for first in range(0, len(rows), size)]
    responses, scores = (
        [put(store, stage, f"{stage}.parquet", shard, schema, iteration * 100 + n) for n, shard in enumerate(shards)]
        for stage, schema in (("responses", RESPONSES), ("scores", SCORES))
    )
    merged = replay.Spec(
        iteration=iteration,
        previous=previous,
        selection=selected.ref,
        responses=responses,
        scores=scores,
        sampled_from=iteration,
    )
    replay.run(store, merged, lambda *_: None)
    return selected, committed(store, replay.works(store, merged)), rows


def committed(store: ArtifactStore, works: list[Work]) -> Manifest:
    manifest = store.find(works[0])
    assert manifest is not None
    return manifest


def test_stages_of_several_iterations_equal_one_row_at_a_time(store: ArtifactStore) -> None:
    previous = put(store, "prompts", "train.parquet", prompts(), PROMPTS, 0)
    columns = only(REPLAY, *(name for name in REPLAY.names if name not in HISTORY))
    before = [row | dict.fromkeys(columns.names[4:]) | UNPAIRED for row in prompts()]
    answered = []
    for iteration in range(4):
        selected, merged, rows = advance(store, previous, iteration)
        answered.append(rows)
        expected = naive.merge(before, rows, naive.best_against_worst, iteration, iteration)
        assert rows_of(store, merged.ref, "replay.parquet", columns) == expected
        lived = [naive.history(row["prompt_id"], answered, naive.best_against_worst) for row in expected]
        found = rows_of(store, merged.ref, "replay.parquet", only(REPLAY, *HISTORY))
        assert found == [pytest.approx(row, abs=1e-12) for row in lived]
        metrics = dict(merged.metrics)
        assert metrics.pop("prompts") == PROMPTS_OF_RUN
        statuses = [row["status"] for row in expected]
        assert metrics.pop("status") == {status: statuses.count(status) for status in sorted(set(statuses))}
        reasons = metrics.pop("reasons")
        assert selected.metrics["selected"] == statuses.count("regenerated") + sum(reasons.values())
        assert metrics == pytest.approx(naive.statistics(before, expected, iteration), abs=1e-12)
        previous, before = merged.ref, expected


UNPAIRED = {"status": "unpaired", "reason": "not_generated"}


@pytest.mark.parametrize("selector", ["optune", "margin", "relative", "bandit"])
def test_selected_prompts_keep_the_order_of_the_replay_set(store: ArtifactStore, selector: str) -> None:
    start = put(store, "prompts", "train.parquet", prompts(), PROMPTS, 0)
    everything, first, _ = advance(store, start, 0)
    assert rows_of(store, everything.ref, "selection.parquet", PROMPTS) == prompts()
    previous = first.ref
    for iteration in (1, 2):  # the second has a history to rank by
        some, merged, _ = advance(store, previous, iteration, selector)
        stored = rows_of(store, some.ref, "selection.parquet", PROMPTS)
        table = read_table(store.fetch(previous) / "replay.parquet", REPLAY)
        lowest = set(
            select(table, SELECTORS.parse({"type": selector, "rho": 0.4}), seed=3, iteration=iteration).to_pylist()
        )
        assert len(lowest) == 41
        assert stored == [row for row in prompts() if row["prompt_id"] in lowest]
        previous = merged.ref
