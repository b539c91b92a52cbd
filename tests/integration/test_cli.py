"""The command line on a finished run: what it shows comes from the store alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from optune_core.errors import OptuneError
from tests.tiny import write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the run `shown`: one iteration."""
    from flows.iterate import optune

    store = str(tmp_path_factory.mktemp("cli") / "store")
    optune(str(write_config(tiny, name="shown", iterations=1)), store=store)
    return store


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_of_all_runs_and_of_one(store: str) -> None:
    assert json.loads(call("status", "--json", "--store", store)) == [{"run": "shown", "committed": 1, "wanted": 1}]
    status = json.loads(call("status", "shown", "--json", "--store", store))
    assert status["iterations"][0]["prompts"] == 12
    assert status["overall"].keys() == {"proxy", "gold"}
    assert status["policy"]["stage"] == "policy"


def test_show_an_artifact_by_a_prefix_of_its_key(store: str) -> None:
    (replay,) = (Path(store) / "artifacts" / "replay").iterdir()
    from optune_core.storage import ArtifactStore, open_objects

    manifest = ArtifactStore(open_objects(store)).committed("replay", replay.name)
    assert manifest is not None
    assert "replay.parquet" in manifest.files
    call("show", f"replay/{replay.name[:8]}", "--store", store)
    with pytest.raises(OptuneError, match="no such artifact"):
        call("show", "replay/zzz", "--store", store)


def test_history_of_a_prompt(store: str) -> None:
    import pyarrow.parquet as pq

    (file,) = Path(store).glob("artifacts/replay/*/*/replay.parquet")
    prompt_id = pq.read_table(file)["prompt_id"][0].as_py()
    call("show", prompt_id, "--store", store)
    with pytest.raises(OptuneError, match="holds no prompt"):
        call("show", "0" * 32, "--store", store)


def test_unknown_run_lists_the_known_ones(store: str) -> None:
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
