"""Garbage collection in a bucket, and clocks that are off."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from optune_core.storage import ArtifactStore, Ledger, Work
from optune_core.storage import lease as lease_module
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.lease import LeaseRecord, read_lease, take
from optune_core.storage.local import LocalObjects
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import DATA, Stage, commit, each_transient, half_an_hour_of_grace, stored_file
from tests.sections import AnyConfig

pytestmark = pytest.mark.faults


def test_a_collection_in_a_bucket_deletes_exactly_the_objects_that_no_run_needs(stage: Stage) -> None:
    store = stage.store()
    parent = commit(store, Work("demo", 1, {"name": "parent"}))
    kept = commit(store, Work("demo", 1, {"name": "kept"}, {"parent": parent.ref}))
    strange = commit(store, Work("demo", 1, {"name": "strange"}))
    left = ["artifacts/demo/key/attempt/data.bin", "checkpoints/key/head.json", "probe/abc", "scratch/tmp/half"]
    for path in left:
        stage.direct.create(path, b"x")
    ledger = Ledger(stage.direct, "run")
    ledger.open(AnyConfig(), {"policy": kept.ref})
    stage.direct.create("runs/run/lease.json", LeaseRecord("finished", None, "", None, 1, 1, 0, "").to_bytes())

    def bucket() -> set[str]:
        return {entry.path for entry in stage.direct.walk("")}

    before = bucket()
    assert half_an_hour_of_grace(stage.objects) == set()
    garbage = find_garbage(store, grace_seconds=-60)  # everything counts as old
    delete_garbage(store, garbage)
    manifest = f"artifacts/demo/{strange.ref.key}/manifest.json"
    assert [entry.path for entry in garbage.commits] == [manifest]
    assert before - bucket() == {manifest, stored_file(strange), *left}
    assert (stage.truth().fetch(kept.ref) / "data.bin").read_bytes() == DATA
    assert (stage.truth().fetch(parent.ref) / "data.bin").read_bytes() == DATA


@each_transient
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_collection_survives_a_failed_request(stage: Stage, fault: Fault, method: str) -> None:
    stage.direct.create("artifacts/demo/key/attempt/data.bin", b"x")
    hit = stage.proxy.script(fault, method)
    store = stage.store()
    delete_garbage(store, find_garbage(store, grace_seconds=-60))
    assert hit.hits == 1
    assert list(stage.direct.walk("")) == []


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_store_whose_clock_is_an_hour_off_keeps_what_is_being_written(stage: Stage, seconds: int) -> None:
    stage.direct.create("artifacts/demo/key/attempt/data.bin", b"being written")
    stage.proxy.script(faults.clock_off_by(seconds), times=ALWAYS)
    assert abs(stage.objects.now() - time.time() - seconds) < 60, "the proxy does not shift the clock"
    assert half_an_hour_of_grace(stage.objects) == set()
    garbage = find_garbage(ArtifactStore(stage.objects), grace_seconds=-60)
    assert [entry.path for entry in garbage.data if entry.path.startswith("artifacts")] == [
        "artifacts/demo/key/attempt/data.bin"
    ]


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_process_whose_clock_is_an_hour_off_keeps_what_is_being_written_to_a_disk(
    tmp_path: Path, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a network disk are stamped with the clock of another machine."""
    objects = LocalObjects(tmp_path)
    objects.create("artifacts/demo/key/attempt/young.bin", b"being written")
    objects.create("artifacts/demo/key/attempt/old.bin", b"left behind")
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "artifacts/demo/key/attempt/old.bin", (hour_ago, hour_ago))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    assert half_an_hour_of_grace(objects) == {"artifacts/demo/key/attempt/old.bin"}


def test_data_that_is_older_than_its_upload_counts_as_young(tmp_path: Path) -> None:
    """On one disk an upload is a link, which is as old as the file, such as a model downloaded last year."""
    objects = LocalObjects(tmp_path / "store")
    file = tmp_path / "weights"
    file.write_bytes(b"old")
    os.utime(file, (1e9, 1e9))
    objects.upload(file, "artifacts/policy/key/attempt/weights")
    assert half_an_hour_of_grace(objects) == set()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_lease_survives_a_clock_that_jumps(stage: Stage, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 1800)  # a beat comes in time, however slow this machine is
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.02)
    lost: list[str] = []
    lease = take(stage.objects, "run", {}, on_lost=lambda: lost.append("lost"))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    stage.proxy.script(faults.clock_off_by(seconds), times=ALWAYS)
    with pytest.raises(lease_module.RunBusy):
        take(stage.objects, "run", {})
    lease.release("finished")
    assert lost == []
    record = read_lease(stage.direct, "run")
    assert record is not None and record.state == "finished"
