"""A sweep of the tiny model: cells are ordinary runs, shared artifacts are made once, a killed sweep continues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.errors import ConfigDrift, OptuneError
from optune_core.storage import ArtifactStore, Ledger, open_objects
from optune_core.storage.lease import read_lease
from optune_core.sweep.grid import load_sweep
from optune_core.sweep.sharing import sharing
from tests.integration.test_pipeline import facts, records, run
from tests.tiny import write_config
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = str(Path(__file__).parents[2])
GRID = {"selection.rho": [0.5, 0.25], "training.loss.beta2": [1.0, 0.0]}


def write_sweep(tiny: Path, name: str, grid: dict[str, list[Any]] = GRID, *, held_out: int = 0) -> Path:
    base = write_config(tiny, name=f"{name}-base", prompts={"held_out": held_out})
    path = tiny / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": str(base), "grid": grid}))
    return path


@pytest.fixture(scope="module")
def environment(prefect_server: None) -> dict[str, str]:
    """The environment of a process that uses this session's Prefect server and this working tree."""
    from prefect.settings import PREFECT_API_URL

    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def cells_import_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)


def start(sweep: Path, store: str, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "sweep", str(sweep), "--store", store]
    with (Path(store).parent / "log").open("ab") as log:
        return subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True)


def log(store: str) -> str:
    return (Path(store).parent / "log").read_text(errors="replace")


def count(store: str, stage: str) -> int:
    return len(list((Path(store) / "artifacts" / stage).glob("*/manifest.json")))


def is_finished(store: str, run: str) -> bool:
    lease = read_lease(open_objects(store), run)
    return lease is not None and lease.state == "finished"


def is_held(store: str, run: str) -> bool:
    lease = read_lease(open_objects(store), run)
    return lease is not None and lease.holder is not None


def begun(store: str, runs: list[str]) -> int:
    """Return how many of the runs have committed their iteration 0."""
    return sum(Ledger(open_objects(store), name).iteration(0) is not None for name in runs)


@pytest.fixture(scope="module")
def swept(tiny: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a 2 × 2 sweep that is killed while its second cell works, and started again."""
    store = str(tmp_path_factory.mktemp("sweep") / "store")
    sweep = write_sweep(tiny, "swept", held_out=6)
    runs = [cell.run for cell in load_sweep(sweep).cells]
    killed = start(sweep, store, environment)
    until(lambda: begun(store, runs) >= 2 or killed.poll() is not None)
    assert killed.poll() is None, log(store)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    psutil.wait_procs(children, timeout=PATIENCE)
    complete = sum(is_finished(store, run) for run in runs)
    assert 1 <= complete < 4
    assert not [child for child in children if child.is_running()], "a cell outlived its sweep"
    assert start(sweep, store, environment).wait(PATIENCE) == 0, log(store)
    assert f"{complete} of 4 cells are complete" in log(store)
    return sweep, store


def test_a_killed_sweep_is_continued_to_complete_cells(swept: tuple[Path, str]) -> None:
    sweep, store = swept
    for cell in load_sweep(sweep).cells:
        assert is_finished(store, cell.run)
        assert len(records(store, cell.run)) == 2
        assert Ledger(open_objects(store), cell.run).held_out(2) is not None


def test_artifacts_that_cells_share_are_made_once(swept: tuple[Path, str]) -> None:
    """12 prompts in 3 shards and 6 held-out ones in 2. Iteration 0: one replay set, a policy a loss. Iteration 1: a
    replay set and a policy a cell, with 2 shards at ρ = 0.5 and 1 at ρ = 0.25; π₂ answers the held-out prompts."""
    _, store = swept
    assert count(store, "replay") == 1 + 4
    assert count(store, "policy") == 2 + 4
    held_out = 2 * (1 + 2 + 4)
    assert count(store, "responses") == 3 + 2 * (2 + 1) + held_out
    objects = ArtifactStore(open_objects(store))
    shared = sharing(objects, [cell.run for cell in load_sweep(swept[0]).cells])
    assert 0 < shared.made < shared.unshared
    assert shared.shared >= 3 + 2 + 1 + 2, "shards, held-out shards, replay set, policies of iteration 0"


@pytest.fixture(scope="module")
def alone(swept: tuple[Path, str], s3_bucket: str, tiny: Path) -> str:
    """Run the last cell of the sweep as a single run on an object store."""
    store = f"{s3_bucket}/alone"
    run(tiny / "swept-base.yaml", store, overrides=load_sweep(swept[0]).cells[-1].overrides)
    return store


def test_a_cell_on_a_disk_equals_a_single_run_on_an_object_store(swept: tuple[Path, str], alone: str) -> None:
    sweep, store = swept
    cell = load_sweep(sweep).cells[-1]
    assert facts(alone, cell.run) == facts(store, cell.run)


def test_a_sweep_on_an_object_store_is_judged_compared_and_reported(
    swept: tuple[Path, str], alone: str, tmp_path: Path
) -> None:
    from flows.sweep import sweep as flow

    judge = {
        "kind": "win_score",
        "name": "judged",
        "prompts": {"type": "held_out"},
        "baseline": {"type": "iteration", "iteration": 0},
        "judge": {"type": "reward", "reward": {"type": "function", "function": "tests.rewards:brevity"}},
    }
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(judge))
    content = yaml.safe_load(swept[0].read_text())
    grid = {key: values[-1:] for key, values in GRID.items()}
    path = tmp_path / "swept.yaml"
    path.write_text(yaml.safe_dump(content | {"grid": grid, "evaluation": str(tmp_path / "judge.yaml")}))
    (cell,) = load_sweep(path).cells
    places = flow(str(path), store=alone)
    assert places and all(place.startswith(alone) for place in places)
    objects = open_objects(alone)
    lease = json.loads(objects.read(f"runs/{cell.run}/lease.json") or b"{}")
    assert lease["starts"] == 1, "the cell was found finished"
    assert [record["iteration"] for record in Ledger(objects, cell.run).evaluations("win_score")][-2:] == [1, 2]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", cell.run, "--store", alone, "--out", str(page)], catch_exceptions=False)
    assert done.exit_code == 0 and "Win score: judged" in page.read_text()


def test_the_backbone_of_a_trained_reward_model_is_imported_only_as_a_model(
    tiny: Path, prefect_server: None, tmp_path: Path
) -> None:
    from tasks.sweep import import_models

    pairs = {"type": "labelled", "function": "tests.rewards:vowels"}
    reward = {"type": "trained", "model": str(tiny / "policy"), "pairs": pairs}
    base = write_config(tiny, name="to-be-trained", replaced={"reward": reward})
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "trained", "base": str(base), "grid": GRID}))
    import_models(str(tmp_path / "store"), load_sweep(path))
    assert count(str(tmp_path / "store"), "model") == 1


def test_a_complete_sweep_started_again_writes_nothing(swept: tuple[Path, str], environment: dict[str, str]) -> None:
    sweep, store = swept
    before = {path: path.stat().st_mtime_ns for path in Path(store).rglob("*.json")}
    assert start(sweep, store, environment).wait(PATIENCE) == 0, log(store)
    assert {path: path.stat().st_mtime_ns for path in Path(store).rglob("*.json")} == before


def test_tables_and_figures_of_a_complete_sweep_are_shown_and_stored(
    swept: tuple[Path, str], environment: dict[str, str], tmp_path: Path
) -> None:
    sweep, store = swept
    folder = Path(store) / "sweeps" / "swept"
    assert len(list((folder / "cells").iterdir())) == 4
    names = ["by-iteration", "by-time", "dpo-and-wdpo"]
    assert {file.stem for file in (folder / "figures").iterdir()} == {
        f"{r}-{n}" for r in ("proxy", "gold") for n in names
    }
    command = [sys.executable, "-c", "from flows.cli import main; main()", "sweep", str(sweep), "--store", store]
    shown = subprocess.run(
        [*command, "--table", "--figures", str(tmp_path / "figures")], env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("2/2") == 4
    assert "s saved" in shown.stdout
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 6


def test_another_base_is_refused_and_a_grown_grid_is_not(
    swept: tuple[Path, str], tiny: Path, environment: dict[str, str]
) -> None:
    from flows.sweep import sweep as flow

    sweep, store = swept
    with pytest.raises(ConfigDrift, match=r"4 of its cells(.|\n)*training\.loss\.beta1: 0\.1 → 0\.3"):
        flow(str(sweep), ["training.loss.beta1=0.3"], store=store)
    runs = {cell.run for cell in load_sweep(sweep).cells}
    made = count(store, "policy")
    grid = GRID | {"training.loss.beta2": [0.0, 1.0, 3.0], "selection.rho": [0.5]}
    grown = write_sweep(tiny, "swept", grid, held_out=6)
    assert start(grown, store, environment).wait(PATIENCE) == 0, log(store)
    assert count(store, "policy") == made + 2
    (new,) = {cell.run for cell in load_sweep(grown).cells} - runs
    assert len(records(store, new)) == 2
    assert "Cells of earlier starts" in log(store)


def test_two_cells_run_at_once_and_a_failed_one_stops_no_other(
    tiny: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """`health.max_truncated: 0` fails a cell before its first training."""
    store = str(tmp_path / "store")
    grid = {"selection.rho": [0.5, 0.25], "seed": [3], "health.max_truncated": [1.0, 0.0]}
    sweep = write_sweep(tiny, "pair", grid)
    process = start(sweep, store, environment, "--parallel", "2")
    most = 0
    while process.poll() is None:
        cells = [child for child in _children(process.pid) if "flows.cli" in " ".join(_arguments(child))]
        most = max(most, len(cells))
        time.sleep(0.2)
    assert process.returncode == 2, log(store)
    assert most == 2
    printed = log(store)
    assert "2 of 4 cells failed" in printed
    assert "UnhealthyData" in printed
    good = [cell.run for cell in load_sweep(sweep).cells if cell.config.health.max_truncated == 1.0]
    assert [len(records(store, name)) for name in good] == [2, 2]
    assert count(store, "replay") == 1 + 2
    assert count(store, "policy") == 1 + 2
    assert "2/2" in printed and "0/2 failed" in printed


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_ctrl_c_stops_the_cell_and_the_command_continues(
    tiny: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    import signal

    store = str(tmp_path / "store")
    sweep = write_sweep(tiny, "stopped", {"seed": [5]})
    (cell,) = load_sweep(sweep).cells
    process = start(sweep, store, environment)
    while count(store, "responses") == 0:
        assert process.poll() is None, log(store)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    lease = read_lease(open_objects(store), cell.run)
    assert lease is not None and (lease.state, lease.holder) == ("stopped", None)
    assert start(sweep, store, environment).wait(PATIENCE) == 0, log(store)
    assert len(records(store, cell.run)) == 2


SERVE = """
from flows.run import optune
from prefect.types.entrypoint import EntrypointType

optune.serve(name="iterate", pause_on_shutdown=False, entrypoint_type=EntrypointType.MODULE_PATH)
"""


@pytest.fixture
def pool(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Start a process that serves the deployment `optune/iterate`."""
    with (tmp_path / "pool-log").open("w") as output:
        server = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdout=output, stderr=output)
        try:
            until(lambda: "iterate" in (tmp_path / "pool-log").read_text() or server.poll() is not None)
            assert server.poll() is None, (tmp_path / "pool-log").read_text()
            yield "optune/iterate"
        finally:
            server.terminate()
            server.wait(PATIENCE)


def test_cells_on_a_pool_survive_their_sweep_and_are_found_again(
    tiny: Path, environment: dict[str, str], pool: str, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    store = str(tmp_path / "store")
    sweep = write_sweep(tiny, "pooled", {"selection.rho": [0.5, 0.25]})
    runs = [cell.run for cell in load_sweep(sweep).cells]
    killed = start(sweep, store, environment, "--deployment", pool)
    until(lambda: is_held(store, runs[0]) or killed.poll() is not None)
    assert killed.poll() is None, log(store)
    killed.kill()
    killed.wait()
    assert start(sweep, store, environment, "--deployment", pool).wait(PATIENCE) == 0, log(store)
    assert [len(records(store, name)) for name in runs] == [2, 2]
    assert count(store, "replay") == 3
    with get_client(sync_client=True) as client:
        names = [found.name for found in client.read_flow_runs() if found.name in runs]
    assert sorted(names) == sorted(runs), "one flow run a cell, though the sweep was started twice"
    assert json.loads((Path(store) / "runs" / runs[0] / "lease.json").read_text())["starts"] == 1


def test_a_cell_that_fails_on_a_pool_is_reported(
    tiny: Path, environment: dict[str, str], pool: str, tmp_path: Path
) -> None:
    from flows.sweep import sweep as flow

    store = str(tmp_path / "store")
    sweep = write_sweep(tiny, "unhealthy", {"health.max_truncated": [0.0]})
    with pytest.raises(OptuneError, match=r"1 of 1 cells failed(.|\n)*UnhealthyData"):
        flow(str(sweep), store=store, deployment=pool)
