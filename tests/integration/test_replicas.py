"""Engines and reward models side by side: results do not depend on their number or on a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from optune_core.data.schemas import PROMPTS, write_table
from optune_core.errors import TransientError
from optune_core.generation.section import Sampling
from optune_core.generation.transformers import TransformersEngine
from optune_core.process.children import no_child
from optune_core.process.progress import silent
from optune_core.rewards import ReadyReward
from optune_core.rewards.classifier import ClassifierReward
from optune_core.stages import responses, scores
from optune_core.stages.launch import run_stage
from optune_core.storage import ArtifactStore, Ref, Work, open_objects
from tests.tiny import build_model
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

RUN = """
import signal, sys
from optune_core.stages.launch import run_stage
from optune_core.stages import responses
from optune_core.storage import ArtifactStore, open_objects
def terminate(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, terminate)
store, spec = ArtifactStore(open_objects(sys.argv[1])), responses.Spec.model_validate_json(sys.argv[2])
run_stage(store, "responses", spec, lambda *step: print(*step, flush=True), lambda line: None)
"""


class Inputs:
    """A store with the tiny policy and prompts for it."""

    def __init__(self, folder: Path, policy: Path, rows: int = 22) -> None:
        self.store = ArtifactStore(open_objects(str(folder / "store")))
        self.rows = rows
        self.policy = self.model(policy, "policy")
        table = pa.Table.from_pylist(
            [
                {"prompt_id": f"p{row}", "prompt": f"{row}", "messages": [], "prompt_token_ids": [5 + row % 200]}
                for row in range(rows)
            ],
            schema=PROMPTS,
        )
        with self.store.scratch() as scratch:
            write_table(table, PROMPTS, scratch / "prompts.parquet")
            self.prompts = self.store.commit(Work("prompts", 1, {}), scratch).ref

    def model(self, folder: Path, role: str) -> Ref:
        with self.store.scratch() as scratch:
            shutil.copytree(folder, scratch / "model")
            return self.store.commit(Work("model", 1, {"role": role}), scratch).ref

    def generation(self, replicas: int | None) -> responses.Spec:
        engine = TransformersEngine(dtype="float32", batch_size=4, replicas=replicas)
        jobs = [
            responses.GenerationJob(prompts=self.prompts, file="prompts.parquet", rows=rows, samples=samples)
            for rows, samples in ((self.rows, 2), (6, 1))
        ]
        return responses.Spec(
            sampling=Sampling(max_tokens=10, shard_size=5, engine=engine),
            max_prompt_tokens=16,
            seed=0,
            iteration=0,
            policy=self.policy,
            jobs=jobs,
        )

    def generate(self, replicas: int | None, **options: Any) -> list[Ref]:
        arguments: dict[str, Any] = {"progress": silent, "log": lambda line: None} | options
        return [made.ref for made in run_stage(self.store, "responses", self.generation(replicas), **arguments)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_several_replicas_make_the_same_bytes_as_one(tiny: Path, tmp_path: Path) -> None:
    one, several = (Inputs(tmp_path / name, tiny / "policy") for name in ("one", "several"))
    shown: list[tuple[str, int, int]] = []
    commits: list[bool] = []
    alone = one.generate(None)
    together = several.generate(
        2, progress=lambda *step: shown.append(step), committed=lambda: commits.append(no_child.is_set())
    )
    assert together == alone
    assert len(alone) == 7
    assert commits == [False] * 7
    assert shown[0] == ("start engine", 0, 0)
    assert shown[-1] == ("generate", 50, 50)
    engines = [several.store.manifest(ref).timing["engine_start_seconds"] > 0 for ref in together]
    assert engines == [True, True, False, False, False, False, False], "dealt in turn"

    classifier = build_model(tmp_path / "classifier", labels=1)
    scored = []
    for inputs, replicas in ((one, None), (several, 2)):
        job = scores.ScoringJob(
            reward=ReadyReward.of(
                ClassifierReward(model=str(classifier), dtype="float32"), inputs.model(classifier, "reward")
            ),
            drop_truncated=False,
            responses=alone,
        )
        spec = scores.Spec(jobs=[job], replicas=replicas)
        scored.append([made.ref for made in run_stage(inputs.store, "scores", spec, silent, lambda line: None)])
    assert scored[0] == scored[1]


def test_a_killed_replica_ends_the_others_and_the_next_start_makes_the_rest(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(tmp_path, tiny / "policy")
    before = set(psutil.Process().children(recursive=True))
    with monkeypatch.context() as planned:
        (tmp_path / "plan").write_text("kill create.after/responses\n")
        planned.setenv("OPTUNE_FAILPOINTS", str(tmp_path))
        with pytest.raises(TransientError, match="signal 9"):
            inputs.generate(2)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert no_child.is_set()
    works = responses.works(inputs.store, inputs.generation(2))
    kept = [manifest.ref for work in works if (manifest := inputs.store.find(work)) is not None]
    assert 1 <= len(kept) < 7
    made = inputs.generate(3)
    assert len(made) == 7
    assert set(kept) <= set(made)


def test_all_replicas_end_when_their_process_group_gets_sigterm(tiny: Path, tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, tiny / "policy", rows=1000)
    command = [sys.executable, "-c", RUN, inputs.store.objects.url, inputs.generation(2).model_dump_json()]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert any(line.startswith("generate") for line in parent.stdout), "both generate"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 2
        os.killpg(parent.pid, signal.SIGTERM)
        assert parent.wait(PATIENCE) == 143
    assert not any(child.is_running() for child in children)
    works = responses.works(inputs.store, inputs.generation(2))
    assert any(inputs.store.find(work) is None for work in works)
