"""`generation.ahead`: responses come from the previous policy, on a work pool while training runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from optune_core.storage import ArtifactStore, Ref, open_objects
from tests.integration.test_pipeline import facts, records, replay, run
from tests.tiny import write_config
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

SERVE = """
from flows.train import train
from prefect.types.entrypoint import EntrypointType

train.serve(name="gpu", pause_on_shutdown=False, entrypoint_type=EntrypointType.MODULE_PATH)
"""


@pytest.fixture(scope="module")
def ahead_run(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run two iterations on one machine, without a work pool."""
    store = str(tmp_path_factory.mktemp("ahead") / "store")
    run(write_config(tiny, name="ahead", prompts={"held_out": 0}, generation={"ahead": True}), store)
    return store


def test_responses_are_sampled_from_the_previous_policy_and_recorded_so(ahead_run: str) -> None:
    store = ArtifactStore(open_objects(ahead_run))
    made = records(ahead_run, "ahead")
    for t, record in enumerate(made):
        sampler = record["artifacts"]["started_from"] if t == 0 else made[t - 1]["artifacts"]["started_from"]
        parents = store.manifest(record["artifacts"]["responses"][0]).parents
        assert parents["policy"] == sampler
        fresh = [row for row in replay(ahead_run, record) if row["generated_at"] == t]
        assert fresh
        assert {row["sampled_from"] for row in fresh} == {max(0, t - 1)}
    staleness = [record["metrics"]["replay"]["staleness/mean"] for record in made]
    assert staleness[0] == 0 < staleness[1] <= 1


def test_keys_of_responses_do_not_depend_on_ahead(tiny: Path) -> None:
    """Iteration 0 is therefore shared with a run without `ahead`."""
    from optune_core.config import load_config
    from optune_core.stages import responses

    keys = set()
    for ahead in (False, True):
        config = load_config(write_config(tiny, name="either", generation={"ahead": ahead}))
        job = responses.GenerationJob(prompts=Ref("prompts", "a", "b"), file="file", rows=3, samples=2)
        policy = Ref("model", "a", "b")
        spec = responses.Spec(
            sampling=config.generation.sampling, max_prompt_tokens=9, seed=0, iteration=0, policy=policy, jobs=[job]
        )
        keys |= {work.key for work in responses.works(ArtifactStore(open_objects(str(tiny / "none"))), spec)}
    assert len(keys) == 1


@pytest.fixture
def training_pool(prefect_server: None, tmp_path: Path) -> Iterator[psutil.Process]:
    """Start a process that serves the deployment `train/gpu`."""
    from prefect.settings import PREFECT_API_URL

    environment = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdout=log, stderr=log)
        try:
            until(lambda: "gpu" in (tmp_path / "log").read_text() or server.poll() is not None)
            assert server.poll() is None, (tmp_path / "log").read_text()
            yield psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(PATIENCE)


def responses_in(store: str) -> int:
    return len(list(Path(store).glob("artifacts/responses/*/manifest.json")))


def training_of(pool: psutil.Process) -> psutil.Process | None:
    """Return the process in which a pool trains a policy, if there is one."""
    for process in pool.children(recursive=True):
        with suppress(psutil.Error):
            if "policy" in process.cmdline():
                return process
    return None


def test_on_a_work_pool_sampling_does_not_wait_for_training(
    ahead_run: str, tiny: Path, training_pool: psutil.Process, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")

    def stop_training_until_all_is_sampled() -> None:
        training = until(lambda: training_of(training_pool))
        training.suspend()
        try:
            until(lambda: responses_in(store) == responses_in(ahead_run))
        finally:
            training.resume()

    with ThreadPoolExecutor() as beside:
        stopped = beside.submit(stop_training_until_all_is_sampled)
        run(tiny / "ahead.yaml", store, train_deployment="train/gpu")
        stopped.result()
    first, second = records(store, "ahead")
    artifacts = ArtifactStore(open_objects(store))
    sampled = [artifacts.manifest(ref).committed_at for ref in second["artifacts"]["responses"]]
    trained = artifacts.manifest(first["artifacts"]["policy"]).committed_at
    assert min(sampled) < trained
    assert facts(store, "ahead") == facts(ahead_run, "ahead")
