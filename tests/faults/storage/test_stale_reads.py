"""Reads that do not yet see what was written."""

from __future__ import annotations

import pytest

from optune_core.errors import TransientError
from optune_core.storage import lease as lease_module
from optune_core.storage.lease import read_lease, take
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import DATA, REQUESTS_OF_A_COMMIT, WORK, Stage, assert_committed_once, commit

pytestmark = pytest.mark.faults

STALE = [faults.not_there_yet, faults.as_it_was]
each_stale = pytest.mark.parametrize("fault", STALE, ids=lambda fault: fault.__name__)


@each_stale
def test_a_stale_read_while_committing_costs_one_more_read(stage: Stage, fault: Fault) -> None:
    hit = stage.proxy.script(fault, "GET", "/manifest.json")
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)
    assert hit.hits == 1


@each_stale
def test_a_committer_that_does_not_see_an_earlier_commit_gets_it(stage: Stage, fault: Fault) -> None:
    commit(stage.truth(), who=1.0)
    stage.proxy.script(fault, "GET", "/manifest.json", times=2)
    store = stage.store()
    assert store.find(WORK) is None
    assert_committed_once(stage, commit(store, who=2.0), who=1.0)


@each_stale
@pytest.mark.parametrize("request_", ["manifest", "data"])
def test_a_fetch_reads_twice_before_it_reports_something_missing(stage: Stage, fault: Fault, request_: str) -> None:
    manifest = commit(stage.truth())
    stage.proxy.script(fault, "GET", REQUESTS_OF_A_COMMIT[request_][1])
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == DATA
    assert stage.truth().find(WORK) == manifest


def test_a_swap_that_rests_on_a_stale_read_is_refused_by_the_server(stage: Stage) -> None:
    stage.direct.create("x", b"old")
    assert stage.objects.read("x") == b"old"
    stage.direct.swap("x", b"old", b"theirs")
    hit = stage.proxy.script(faults.as_it_was, "GET", "/x$")
    assert not stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") == b"theirs"


@pytest.mark.parametrize("fault", [faults.as_it_was, faults.not_there_yet], ids=lambda fault: fault.__name__)
def test_a_stale_read_does_not_cost_a_holder_its_lease(
    stage: Stage, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 3600)  # the test beats
    lease = take(stage.objects, "run", {})
    assert lease._move() and lease._move()
    hit = stage.proxy.script(fault, "GET", "/lease.json")
    assert lease._move(), "the holder believes that it lost"
    assert hit.hits == 1
    lease.release("finished")


def test_a_beat_whose_answer_was_lost_does_not_hide_how_the_start_ended(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 3600)
    lease = take(stage.objects, "run", {})
    stage.proxy.script(faults.lose_answer, "PUT", "/lease.json")
    stage.proxy.script(faults.unavailable, ".*", "/lease.json", times=ALWAYS)
    with pytest.raises(TransientError):
        lease._move()
    stage.proxy.heal()
    lease.release("finished")
    record = read_lease(stage.direct, "run")
    assert record is not None and (record.state, record.holder) == ("finished", None)
