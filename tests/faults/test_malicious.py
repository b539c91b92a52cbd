"""Malicious inputs are refused before anything outside of the store is touched."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from optune_core.errors import CorruptArtifact
from optune_core.storage import ArtifactStore, open_objects
from tests.faults.driver import OPTUNE
from tests.tiny import write_config
from tests.waiting import PATIENCE

pytestmark = pytest.mark.faults


def optune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OPTUNE, *arguments], capture_output=True, text=True, timeout=PATIENCE, env=os.environ | environment
    )


@pytest.mark.parametrize("name", ["../../escape", "a/b", "..", "/etc/cron.d/x", "x\n"])
def test_a_run_name_that_leaves_the_store_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    done = optune("run", str(write_config(tiny)), "--store", str(tmp_path / "a" / "store"), "--run", name)
    assert done.returncode == 2
    assert "is not a valid name" in done.stderr
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("what", ["../../secret/x", "model/../../../secret", "/etc/passwd"])
def test_show_does_not_look_outside_of_the_store(tmp_path: Path, what: str) -> None:
    secret = tmp_path / "secret" / "x"
    secret.mkdir(parents=True)
    (secret / "manifest.json").write_text('{"found": "me"}')
    (tmp_path / "store" / "artifacts" / "model").mkdir(parents=True)
    done = optune("show", what, "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "found" not in done.stdout + done.stderr.replace("holds no", "")


def test_a_config_with_a_secret_is_refused_without_showing_it(tiny: Path, tmp_path: Path) -> None:
    token = "hf_" + "Ab3" * 10
    done = optune("run", str(write_config(tiny)), f"policy.model={token}", "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "policy.model" in done.stderr
    assert token not in done.stdout + done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", {"../../../../outside": {"size": 3, "sha256": "0" * 64}}),
        ("files", {"/etc/hostname": {"size": 3, "sha256": "0" * 64}}),
        ("attempt", "../../../.."),
        ("ref", {"stage": "policy", "key": "0" * 64, "digest": "0" * 64}),
    ],
)
def test_a_manifest_that_points_outside_is_refused_by_every_reader(tmp_path: Path, field: str, value: object) -> None:
    from optune_core.storage import Work

    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    with store.scratch() as scratch:
        (scratch / "data").write_text("abc")
        ref = store.commit(work := Work("demo", 1, {}), scratch).ref
    manifest = tmp_path / "store" / "artifacts" / "demo" / ref.key / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {field: value}))
    (tmp_path / "outside").write_text("abc")
    for read in (lambda: store.find(work), lambda: store.fetch(ref), lambda: store.discard(ref)):
        with pytest.raises(CorruptArtifact):
            read()
    assert (tmp_path / "outside").read_text() == "abc"
