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
def test_a_creator_whose_request_is_hit_learns_that_it_won(stage: Stage, fault: Fault) -> None:
    hit = stage.proxy.script(fault, "PUT")
    assert stage.objects.create("x", b"mine") == b"mine"
    assert hit.hits == 1
    assert stage.direct.read("x") == b"mine"


@each_transient
def test_a_creator_who_lost_learns_it_whatever_hits_its_request(stage: Stage, fault: Fault) -> None:
    stage.direct.create("x", b"theirs")
    hit = stage.proxy.script(fault, "PUT")
    assert stage.objects.create("x", b"mine") == b"theirs"
    assert hit.hits == 1
    assert stage.direct.read("x") == b"theirs"


@each_transient
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_swapper_whose_request_is_hit_learns_that_it_won(stage: Stage, fault: Fault, method: str) -> None:
    stage.direct.create("x", b"old")
    hit = stage.proxy.script(fault, method)
    assert stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") == b"mine"


@each_transient
def test_a_swapper_who_lost_learns_it_whatever_hits_its_request(stage: Stage, fault: Fault) -> None:
    stage.direct.create("x", b"old")

    def overtaken(request: faults.Request) -> faults.Answer | None:
        stage.direct.swap("x", b"old", b"theirs")  # between the look and the write
        return fault(request)

    hit = stage.proxy.script(overtaken, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") == b"theirs"


def test_a_swapper_whose_object_was_deleted_meanwhile_learns_that_it_lost(stage: Stage) -> None:
    stage.direct.create("x", b"old")

    def deleted(request: faults.Request) -> faults.Answer:
        stage.direct.delete("x")
        return request.forward()

    hit = stage.proxy.script(deleted, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")
    assert hit.hits == 1
    assert stage.direct.read("x") is None


def test_a_server_that_answers_404_to_a_swap_of_what_is_gone_is_understood(stage: Stage) -> None:
    """As Amazon does; the one behind the proxy answers 412."""
    stage.direct.create("x", b"old")

    def deleted(request: faults.Request) -> faults.Answer:
        stage.direct.delete("x")
        return faults.not_there_yet(request)

    stage.proxy.script(deleted, "PUT")
    assert not stage.objects.swap("x", b"old", b"mine")


@each_transient
def test_transfers_reads_deletions_and_listings_survive_a_hit(stage: Stage, fault: Fault) -> None:
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
def test_the_usual_patience_outlasts_a_burst(stage: Stage, fault: Fault) -> None:
    """With the pauses and the client library's own retries that are used in earnest."""
    hit = stage.proxy.script(fault, times=3)
    assert S3Objects(stage.url).create("x", b"mine") == b"mine"
    assert hit.hits == 3


def test_a_dead_server_is_given_up_after_the_promised_number_of_tries(stage: Stage) -> None:
    """Tries must not multiply: a server that hangs costs a time-out each."""
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
        assert len(stage.proxy.requests) - before <= 2 * S3Objects._TRIES  # a write, and a look at what stands
