"""Bodies torn on the way or in the store."""

from __future__ import annotations

from typing import Any

import pytest

from optune_core.errors import CorruptArtifact, TransientError
from optune_core.storage import ArtifactStore
from optune_core.storage import artifacts as artifacts_module
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import DATA, WORK, Stage, assert_committed_once, commit, each_transient, stored_file

pytestmark = pytest.mark.faults

AMOUNTS = {"nothing": lambda n: 0, "half": lambda n: n // 2, "all but one": lambda n: n - 1}
each_amount = pytest.mark.parametrize("amount", AMOUNTS)


@each_amount
@pytest.mark.parametrize("tear", [faults.cut_off, faults.shortened], ids=lambda tear: tear.__name__)
def test_a_torn_download_is_repeated(stage: Stage, tear: Any, amount: str) -> None:
    manifest = commit(stage.truth())
    hit = stage.proxy.script(tear(AMOUNTS[amount]), "GET", "/data.bin")
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == DATA
    assert hit.hits == 1
    assert stage.truth().find(WORK) == manifest, "an undamaged artifact was marked as damaged"


@each_amount
def test_a_download_that_always_breaks_off_is_transient_and_marks_no_damage(stage: Stage, amount: str) -> None:
    manifest = commit(stage.truth())
    stage.proxy.script(faults.cut_off(AMOUNTS[amount]), "GET", "/data.bin", times=ALWAYS)
    store = stage.store()
    with pytest.raises(TransientError):
        store.fetch(manifest.ref)
    assert stage.truth().find(WORK) == manifest
    stage.proxy.heal()
    assert (store.fetch(manifest.ref) / "data.bin").read_bytes() == DATA


@each_amount
@pytest.mark.parametrize("tear", [faults.cut_off, faults.shortened], ids=lambda tear: tear.__name__)
def test_a_manifest_torn_while_read_does_not_replace_its_commit(stage: Stage, tear: Any, amount: str) -> None:
    commit(stage.truth(), who=1.0)
    stage.proxy.script(tear(AMOUNTS[amount]), "GET", "/manifest.json")
    store = stage.store()
    manifest = store.find(WORK) or commit(store, who=2.0)
    assert_committed_once(stage, manifest, who=1.0)


@each_amount
def test_torn_bytes_in_the_store_are_refused_and_replaced_by_the_next_commit(stage: Stage, amount: str) -> None:
    damaged = commit(stage.store(), who=1.0)
    kept = AMOUNTS[amount](len(DATA))
    stage.direct.upload(stage.file(DATA[:kept]), stored_file(damaged))
    reader = stage.store()
    with pytest.raises(CorruptArtifact, match=rf"data\.bin' has {kept} bytes, {len(DATA)} were committed"):
        reader.fetch(damaged.ref)
    assert list(stage.folder.rglob("data.bin")) == [], "torn bytes were left where they can be loaded"
    assert [stage.store().find(WORK), reader.find(WORK)] == [None, None]
    healed = commit(stage.store(), who=2.0)
    assert healed.ref == damaged.ref
    assert healed.attempt != damaged.attempt
    assert_committed_once(stage, healed, who=2.0)
    assert (reader.fetch(damaged.ref) / "data.bin").read_bytes() == DATA


def test_changed_bytes_and_a_missing_file_are_refused(stage: Stage) -> None:
    damaged = commit(stage.store())
    stage.direct.upload(stage.file(b"\xff" + DATA[1:]), stored_file(damaged))
    with pytest.raises(CorruptArtifact, match=r"data\.bin' has other bytes"):
        stage.store().fetch(damaged.ref)
    again = commit(stage.store())
    stage.direct.delete(stored_file(again))
    with pytest.raises(CorruptArtifact, match=r"data\.bin' is missing"):
        stage.store().fetch(again.ref)
    assert (stage.truth().fetch(commit(stage.store()).ref) / "data.bin").read_bytes() == DATA


@each_transient
def test_replacing_a_damaged_commit_survives_a_failed_swap(stage: Stage, fault: Fault) -> None:
    damaged = commit(stage.truth(), who=1.0)
    stage.direct.delete(stored_file(damaged))
    with pytest.raises(CorruptArtifact):
        stage.truth().fetch(damaged.ref)
    hit = stage.proxy.script(fault, "PUT", "/manifest.json", nth=2)  # the first finds the damaged one
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=2.0)
    assert hit.hits == 1


def test_a_store_that_damages_every_commit_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArtifactStore, "_is_damaged", lambda store, manifest: True)
    with pytest.raises(TransientError, match="damaged 5 times in a row right after it was committed"):
        commit(stage.store())
    assert stage.proxy.count("GET", "/manifest.json") <= 4 * artifacts_module._COMMIT_ROUNDS
