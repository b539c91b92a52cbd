"""Single requests to a store whose network or server fails."""

from __future__ import annotations

import pytest

from optune_core.errors import TransientError
from optune_core.storage.s3 import S3Objects
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import DATA, Stage, each_transient

pytestmark = pytest.mark.faults


@each_transient
def test_a_winning_creator_learns_it_though_its_request_fails(stage: Stage, fault: Fault) -> None:
    hit = stage.proxy.script(fault, "PUT")
    assert stage.objects.create("x", b"mine") == b"mine"
    assert hit.hits == 1
    assert stage.direct.read("x") == b"mine"


@each_transient
def test_a_losing_creator_learns_it_though_its_request_fails(stage: Stage, fault: Fault) -> None:
    stage.direct.create("x", b"theirs")
    hit = stage.proxy.script(fault, "PUT")
    assert stage.objects.create("x", b"mine") == b"theirs"
    assert hit.hits == 1
    assert stage.direct.read("x") == b"theirs"


@each_transient
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_winning_swap_is_reported_though_its_request_fails(stage: Stage, fault: Fault, method: str) -> None:
    stage.direct.create("x", b"old")
    hit = stage.proxy.script(fault, method)
    assert stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") == b"mine"


@each_transient
def test_a_losing_swap_is_reported_though_its_request_fails(stage: Stage, fault: Fault) -> None:
    stage.direct.create("x", b"old")

    def overtaken(request: faults.Request) -> faults.Answer | None:
        stage.direct.swap("x", b"old", b"theirs")  # between the look and the write
        return fault(request)

    hit = stage.proxy.script(overtaken, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") == b"theirs"


def test_a_swap_of_an_object_deleted_meanwhile_is_lost(stage: Stage) -> None:
    stage.direct.create("x", b"old")

    def deleted(request: faults.Request) -> faults.Answer:
        stage.direct.delete("x")
        return request.forward()

    hit = stage.proxy.script(deleted, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") is None


def test_an_answer_404_to_a_swap_of_a_deleted_object_means_lost(stage: Stage) -> None:
    """Amazon answers 404; the server behind the proxy answers 412."""
    stage.direct.create("x", b"old")

    def deleted(request: faults.Request) -> faults.Answer:
        stage.direct.delete("x")
        return faults.not_there_yet(request)

    stage.proxy.script(deleted, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")


@each_transient
def test_transfers_reads_deletions_and_listings_survive_a_failed_request(stage: Stage, fault: Fault) -> None:
    hits = [stage.proxy.script(fault, "PUT", "/file$"), stage.proxy.script(fault, "GET", "/file$")]
    stage.objects.upload(stage.file(), "file")
    stage.objects.download("file", stage.folder / "copy")
    assert (stage.folder / "copy").read_bytes() == DATA
    hits += [stage.proxy.script(fault, "GET", "/file$"), stage.proxy.script(fault, "GET", "list-type")]
    assert stage.objects.read("file") == DATA
    assert [entry.path for entry in stage.objects.walk("")] == ["file"]
    hits.append(stage.proxy.script(fault, "DELETE"))
    stage.objects.delete("file")
    assert stage.direct.read("file") is None
    assert [hit.hits for hit in hits] == [1] * 5


@pytest.mark.parametrize("fault", [faults.unavailable, faults.broken], ids=lambda fault: fault.__name__)
def test_the_default_retries_outlast_a_burst_of_failures(stage: Stage, fault: Fault) -> None:
    """The client has the pauses and retries of production."""
    hit = stage.proxy.script(fault, times=3)
    assert S3Objects(stage.url).create("x", b"mine") == b"mine"
    assert hit.hits == 3


def test_a_dead_server_is_given_up_after_the_configured_number_of_tries(stage: Stage) -> None:
    """Tries must not multiply, since each costs a time-out at a server that hangs."""
    stage.proxy.script(faults.unavailable, times=ALWAYS)
    for call in (
        lambda: stage.objects.create("x", b""),
        lambda: stage.objects.swap("x", None, b""),
        lambda: stage.objects.swap("x", b"old", b""),
        lambda: stage.objects.read("x"),
    ):
        before = len(stage.proxy.requests)
        with pytest.raises(TransientError):
            call()
        assert len(stage.proxy.requests) - before <= 2 * S3Objects._TRIES  # a write, and a look at what is there
