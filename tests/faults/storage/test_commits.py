"""Commits and fetches while requests fail, hang or arrive late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from optune_core.errors import TransientError
from optune_core.storage.s3 import S3Objects
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import (
    BEFORE_THE_SERVER,
    DATA,
    REQUESTS_OF_A_COMMIT,
    WORK,
    ImpatientS3,
    Stage,
    assert_committed_once,
    commit,
    each_request,
    each_transient,
)
from tests.waiting import until

pytestmark = pytest.mark.faults


@each_transient
@each_request
def test_a_commit_survives_one_failure_of_any_of_its_requests(stage: Stage, fault: Fault, request_: str) -> None:
    hit = stage.proxy.script(fault, *REQUESTS_OF_A_COMMIT[request_])
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)
    assert hit.hits == 1


@pytest.mark.parametrize("fault", BEFORE_THE_SERVER, ids=lambda fault: fault.__name__)
@each_request
def test_a_commit_survives_a_burst_that_is_shorter_than_its_tries(stage: Stage, fault: Fault, request_: str) -> None:
    stage.proxy.script(fault, *REQUESTS_OF_A_COMMIT[request_], times=S3Objects._TRIES - 1)
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)


@each_transient
def test_a_late_committer_gets_the_earlier_commit_though_a_request_fails(stage: Stage, fault: Fault) -> None:
    commit(stage.truth(), who=1.0)
    hit = stage.proxy.script(fault, "PUT", "/manifest.json")
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=1.0)
    assert hit.hits == 1


@each_transient
@pytest.mark.parametrize("request_", ["manifest", "data"])
def test_a_fetch_survives_one_failure_of_any_of_its_requests(stage: Stage, fault: Fault, request_: str) -> None:
    manifest = commit(stage.truth())
    hit = stage.proxy.script(fault, "GET", REQUESTS_OF_A_COMMIT[request_][1])
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == DATA
    assert hit.hits == 1
    assert stage.truth().find(WORK) == manifest


@pytest.mark.parametrize("fault", BEFORE_THE_SERVER, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("request_", ["data", "manifest"])
def test_a_long_burst_is_transient_and_leaves_nothing_readable(stage: Stage, fault: Fault, request_: str) -> None:
    stage.proxy.script(fault, *REQUESTS_OF_A_COMMIT[request_], times=ALWAYS)
    with pytest.raises(TransientError):
        commit(stage.store())
    assert stage.manifests() == []
    assert stage.truth().find(WORK) is None
    stage.proxy.heal()
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=2.0)


def test_a_commit_whose_every_answer_is_lost_is_found_by_the_next_attempt(stage: Stage) -> None:
    stage.proxy.script(faults.lose_answer, ".*", "/manifest.json", times=ALWAYS)
    with pytest.raises(TransientError):
        commit(stage.store(), who=1.0)
    stage.proxy.heal()
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=1.0)


@each_request
def test_a_commit_survives_an_answer_later_than_its_patience(stage: Stage, request_: str) -> None:
    hit = stage.proxy.script(faults.answer_late, *REQUESTS_OF_A_COMMIT[request_])
    manifest = commit(stage.store(ImpatientS3(stage.url)), who=1.0)
    assert hit.hits == 1
    stage.proxy.heal()
    assert_committed_once(stage, manifest, who=1.0)


def held_back(stage: Stage, method: str, path: str) -> Callable[[], None]:
    """Hold back the next matching request. Returns a function that lets it go on and waits for its answer."""
    arrived = []

    def fault(request: faults.Request) -> faults.Answer | None:
        answer = faults.arrive_late(request)
        arrived.append(answer)
        return answer

    stage.proxy.script(fault, method, path)

    def let_go() -> None:
        stage.proxy.heal()
        until(lambda: arrived)

    return let_go


def test_a_manifest_that_arrives_after_its_own_retry_changes_nothing(stage: Stage) -> None:
    let_go = held_back(stage, "PUT", "/manifest.json")
    manifest = commit(stage.store(ImpatientS3(stage.url)), who=1.0)
    let_go()
    assert_committed_once(stage, manifest, who=1.0)


def test_a_manifest_that_arrives_after_another_commit_changes_nothing(stage: Stage) -> None:
    let_go = held_back(stage, "PUT", "/manifest.json")
    stage.proxy.script(faults.unavailable, "PUT", "/manifest.json", times=ALWAYS)
    with pytest.raises(TransientError):
        commit(stage.store(ImpatientS3(stage.url)), who=1.0)
    manifest = commit(stage.truth(), who=2.0)
    let_go()
    assert_committed_once(stage, manifest, who=2.0)


def test_a_manifest_that_arrives_after_its_sender_gave_up_is_a_complete_commit(stage: Stage) -> None:
    let_go = held_back(stage, "PUT", "/manifest.json")
    stage.proxy.script(faults.unavailable, "PUT", "/manifest.json", times=ALWAYS)
    with pytest.raises(TransientError):
        commit(stage.store(ImpatientS3(stage.url)), who=1.0)
    let_go()
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=1.0)


def test_a_swap_that_arrives_late_does_not_undo_a_later_one(stage: Stage) -> None:
    stage.direct.create("x", b"0")
    let_go = held_back(stage, "PUT", "/x$")
    objects = ImpatientS3(stage.url)
    assert objects.swap("x", b"0", b"1")
    assert objects.swap("x", b"1", b"2")
    let_go()
    assert stage.direct.read("x") == b"2"
