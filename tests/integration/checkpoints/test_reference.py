"""Reference log-probabilities: computed once, taken from the engine or an earlier policy, assembled one to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from accelerate import PartialState

from optune_core.data.schemas import REFERENCE, REPLAY, read_table, write_table
from optune_core.errors import ConservationError
from optune_core.storage import ArtifactStore, Work
from optune_core.training import reference
from optune_core.training.layout import TokenPairs
from tests.integration.checkpoints.stages import PAIRS, prepare, replay_table, run


def test_assembled_reference_shards_must_hold_every_pair_exactly_once() -> None:
    ids = ["a", "b", "c"]
    first = reference.shard_table(ids, {2: (1.0, 2.0), 0: (3.0, 4.0)})
    second = reference.shard_table(ids, {1: (5.0, 6.0)})
    assert reference.assemble([first, second], ids) == [(3.0, 4.0), (5.0, 6.0), (1.0, 2.0)]
    for wrong in ([first], [first, second, second], [first, reference.shard_table(["x"], {0: (0.0, 0.0)})]):
        with pytest.raises(ConservationError, match="match one to one"):
            reference.assemble(wrong, ids)


@pytest.mark.slow
def test_log_probabilities_of_unchanged_pairs_under_the_initial_policy_are_reused(
    tiny: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(store, tiny, reference="initial")
    policy_1 = run(store, first)
    fresh = pa.array([1 if row % 3 == 0 else 0 for row in range(PAIRS)], pa.int32())
    table = replay_table()
    changed = table.set_column(table.column_names.index("generated_at"), "generated_at", fresh)
    with store.scratch() as folder:
        write_table(changed, REPLAY, folder / "replay.parquet")
        replay = store.commit(Work("replay", 0, {"iteration": 1}), folder).ref
    second = first.model_copy(update={"iteration": 1, "policy": policy_1.ref, "replay": replay})
    computed = []
    real = reference.reference_logps

    def counting(*args: Any) -> Any:
        computed.append(args[3].rows)
        return real(*args)

    monkeypatch.setattr(reference, "reference_logps", counting)
    policy_2 = run(store, second)
    assert sorted(row for rows in computed for row in rows) == list(range(0, PAIRS, 3))
    files = [store.fetch(made.ref) / reference.FILE for made in (policy_1, policy_2)]
    one, two = [
        dict(zip(t["prompt_id"].to_pylist(), t["reference_chosen_logps"].to_pylist(), strict=True))
        for t in (read_table(file, REFERENCE) for file in files)
    ]
    assert one == pytest.approx(two, rel=1e-6)  # the pairs are the same here, and so is π_0
    assert policy_1.metrics["first"]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(policy_2.metrics["first"]["rewards/margins"]) > 1e-3


@pytest.mark.slow
def test_log_probabilities_of_the_engine_are_used_for_fresh_pairs(tiny: Path, store: ArtifactStore) -> None:
    table = replay_table()
    of_engine = {"chosen_policy_logps": -5.0, "rejected_policy_logps": -6.0}
    for name, value in of_engine.items():
        values = pa.array([None if row == 3 else value for row in range(PAIRS)], pa.float64())
        table = table.set_column(table.column_names.index(name), name, values)
    sampled_from = pa.array([-1 if row == 4 else 0 for row in range(PAIRS)], pa.int32())
    table = table.set_column(table.column_names.index("sampled_from"), "sampled_from", sampled_from)
    for wanted in ("computed", "engine"):
        spec = prepare(store, tiny, reference_logps=wanted)
        passing = reference.ReferencePass(store, spec, table, TokenPairs(table), "sdpa", PartialState(cpu=True))
        expected = {} if wanted == "computed" else dict.fromkeys([0, 1, 2, *range(5, PAIRS)], (-5.0, -6.0))
        assert passing._from_engine() == expected
