"""The command line on a finished run, which it reads from the store alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.errors import ConfigDrift, OptuneError
from optune_core.storage import Ledger, open_objects
from optune_core.storage.lease import hold, read_lease
from tests.tiny import write_config

pytestmark = pytest.mark.slow

HOLD = """
import sys
from optune_core.storage import open_objects
from optune_core.storage.lease import read_lease, take
objects = open_objects(sys.argv[1])
lease = take(objects, "shown", read_lease(objects, "shown").config)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def store(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the run `shown`: one iteration."""
    from flows.run import optune

    store = str(tmp_path_factory.mktemp("cli") / "store")
    optune(str(write_config(tiny, name="shown", iterations=1)), store=store)
    return store


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_shows_all_runs_or_one(store: str) -> None:
    (line,) = json.loads(call("status", "--json", "--store", store))
    assert (line["run"], line["committed"], line["wanted"], line["state"]) == ("shown", 1, 1, "finished")
    status = json.loads(call("status", "shown", "--json", "--store", store))
    assert status["iterations"][0]["prompts"] == 12
    assert status["overall"].keys() == {"proxy", "gold"}
    assert status["policy"]["stage"] == "policy"


def test_a_killed_run_is_shown_as_interrupted(store: str) -> None:
    """The lease was never released, and its holder was a process of this machine."""
    objects = open_objects(store)
    finished = read_lease(objects, "shown")
    assert finished is not None
    held = Popen([sys.executable, "-c", HOLD, store], stdin=PIPE, stdout=PIPE, text=True)
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    assert json.loads(call("status", "--json", "--store", store))[0]["state"] == "working"
    held.kill()
    held.wait()
    (line,) = json.loads(call("status", "--json", "--store", store))
    assert line["state"] == "interrupted"
    assert f"process {held.pid}" in line["message"]
    with hold(objects, "shown", finished.config):
        pass


def test_a_new_run_shares_everything_that_is_unchanged(store: str, tiny: Path) -> None:
    config = str(tiny / "shown.yaml")
    with pytest.raises(ConfigDrift, match="--new-run"):
        call("run", config, "training.loss.beta1=0.2", "--store", store)
    refused = read_lease(open_objects(store), "shown")
    assert refused is not None and refused.state == "finished", "the run that it was not is as it was"
    call("run", config, "training.loss.beta1=0.2", "--new-run", "--store", store)
    before, after = (Ledger(open_objects(store), run).iteration(0) for run in ("shown", "shown-2"))
    assert before is not None and after is not None
    assert before["artifacts"]["replay"] == after["artifacts"]["replay"]
    assert before["artifacts"]["policy"] != after["artifacts"]["policy"]
    call("run", "--run", "shown-2", "--store", store)  # as it was last started, without its file
    lease = read_lease(open_objects(store), "shown-2")
    assert lease is not None and lease.config["training"]["loss"]["beta1"] == 0.2
    shutil.rmtree(Path(store) / "runs" / "shown-2")


def test_garbage_collection_keeps_what_a_run_shows(store: str) -> None:
    dry = call("gc", "--dry-run", "--grace", "0", "--store", store)
    assert "would be deleted" in dry
    assert "artifacts/policy" in dry, "that of the run deleted above"
    assert "deleted" in call("gc", "--grace", "0", "--store", store)
    assert "0 objects, 0 bytes" in call("gc", "--dry-run", "--grace", "0", "--store", store)
    call("status", "shown", "--store", store)


def test_an_artifact_is_shown_by_a_prefix_of_its_key(store: str) -> None:
    (replay,) = (Path(store) / "artifacts" / "replay").iterdir()
    from optune_core.storage import ArtifactStore, open_objects

    manifest = ArtifactStore(open_objects(store)).committed("replay", replay.name)
    assert manifest is not None
    assert "replay.parquet" in manifest.files
    shown = call("show", f"replay/{replay.name[:8]}", "--store", store)
    assert json.loads(shown) == json.loads(manifest.to_bytes())
    with pytest.raises(OptuneError, match="no such artifact"):
        call("show", "replay/zzz", "--store", store)


def test_the_history_of_a_prompt_is_shown(store: str) -> None:
    import pyarrow.parquet as pq

    (file,) = Path(store).glob("artifacts/replay/*/*/replay.parquet")
    row = pq.read_table(file).to_pylist()[0]
    shown = call("show", row["prompt_id"], "--store", store)
    assert f"prompt {row['prompt_id']}: {row['prompt']}\n" in shown
    assert f"iteration 0: {row['status']}, pair of 0" in shown
    with pytest.raises(OptuneError, match="holds no prompt"):
        call("show", "0" * 32, "--store", store)


def test_an_unknown_run_is_refused_with_the_known_ones(store: str) -> None:
    with pytest.raises(OptuneError, match="its runs: shown"):
        call("status", "absent", "--store", store)


def test_configuration_errors_come_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nrho: 3\n")
    optune = Path(sys.executable).with_name("optune")
    command = [str(optune), "run", str(tmp_path / "bad.yaml"), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rho: unknown key (value 3)" in done.stderr
    assert "policy: required" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()
