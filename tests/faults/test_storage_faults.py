"""The store's promises when the network, the server or the disk break theirs.

A scripted proxy stands in front of a real S3 server. `direct` sees the server itself: what really stands there.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import CorruptArtifact, DiskFull, StoreError, TransientError
from optune_core.process import failpoints
from optune_core.storage import ArtifactStore, Ledger, Manifest, Work
from optune_core.storage import artifacts as artifacts_module
from optune_core.storage import lease as lease_module
from optune_core.storage import objects as objects_module
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.lease import LeaseRecord, read_lease, take
from optune_core.storage.objects import LocalObjects, S3Objects, check_conditional_writes
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault, S3Proxy

pytestmark = pytest.mark.faults

WORK = Work("demo", 1, {"rho": 0.5})
DATA = bytes(range(256)) * 40


class QuickS3(S3Objects):
    """The real thing with a test's patience; the client library tries nothing again by itself."""

    _PAUSE_SECONDS = 0.01
    _TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 0}}  # noqa: RUF012


class ImpatientS3(QuickS3):
    """For requests that hang: these are waited for."""

    _TIMEOUTS = {"connect_timeout": 5, "read_timeout": 2, "retries": {"max_attempts": 0}}  # noqa: RUF012


class Stage:
    """The parts of one test: a proxied store, and the server behind it."""

    def __init__(self, proxy: S3Proxy, url: str, direct: S3Objects, objects: S3Objects, folder: Path) -> None:
        self.proxy = proxy
        self.url = url
        self.direct = direct
        self.folder = folder
        self.objects = objects

    def store(self, objects: S3Objects | None = None) -> ArtifactStore:
        """A store of another process: it knows nothing and has downloaded nothing."""
        return ArtifactStore(objects or self.objects, cache=self.folder / uuid.uuid4().hex)

    def truth(self) -> ArtifactStore:
        return self.store(self.direct)

    def manifests(self) -> list[str]:
        return [entry.path for entry in self.direct.walk("artifacts") if entry.path.endswith("/manifest.json")]

    def file(self, body: bytes = DATA) -> Path:
        file = self.folder / uuid.uuid4().hex
        file.write_bytes(body)
        return file


@pytest.fixture(scope="module")
def connected(s3_bucket: str) -> Iterator[tuple[S3Proxy, QuickS3, QuickS3]]:
    """The proxy, and clients of the server and of the proxy: a client takes longer to make than most tests."""
    direct, proxied = QuickS3(s3_bucket), QuickS3(s3_bucket)
    direct.require()  # connects, before the environment names the proxy
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxied.require()
        yield proxy, direct, proxied


@pytest.fixture
def stage(connected: tuple[S3Proxy, QuickS3, QuickS3], tmp_path: Path) -> Stage:
    proxy, direct, proxied = connected
    proxy.reset()
    folder = f"{direct.url}/{uuid.uuid4().hex}"
    return Stage(proxy, folder, below(direct, folder), below(proxied, folder), tmp_path)


def below(objects: QuickS3, url: str) -> QuickS3:
    other = copy.copy(objects)
    other.url, other._root = url, url.removeprefix("s3://")
    return other


def commit(store: ArtifactStore, work: Work = WORK, body: bytes = DATA, who: float = 0.0) -> Manifest:
    """`who` goes into the timing, which two committers of the same work do not share."""
    with store.scratch() as scratch:
        (scratch / "data.bin").write_bytes(body)
        return store.commit(work, scratch, timing={"who": who})


def stored_file(manifest: Manifest) -> str:
    return f"artifacts/{manifest.ref.stage}/{manifest.ref.key}/{manifest.attempt}/data.bin"


BEFORE_THE_SERVER = [faults.hang_up, faults.unavailable, faults.slow_down, faults.broken, faults.conflict]
AFTER_THE_SERVER = [faults.lose_answer, faults.own_success_as_412]
TRANSIENT = [*BEFORE_THE_SERVER, *AFTER_THE_SERVER]
each_transient = pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: fault.__name__)


# One request


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


# A whole commit

REQUESTS_OF_A_COMMIT = {
    "data": ("PUT", "/data.bin"),
    "manifest": ("PUT", "/manifest.json"),
    "reading back": ("GET", "/manifest.json"),
    "looking for damage": ("GET", r"\.damaged"),
}
each_request = pytest.mark.parametrize("request_", REQUESTS_OF_A_COMMIT)


def assert_committed_once(stage: Stage, manifest: Manifest, who: float) -> None:
    assert manifest.timing["who"] == who
    assert len(stage.manifests()) == 1
    truth = stage.truth()
    assert truth.find(WORK) == manifest
    assert (truth.fetch(manifest.ref) / "data.bin").read_bytes() == DATA


@each_transient
@each_request
def test_a_commit_survives_a_hit_on_any_of_its_requests(stage: Stage, fault: Fault, request_: str) -> None:
    hit = stage.proxy.script(fault, *REQUESTS_OF_A_COMMIT[request_])
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)
    assert hit.hits == 1


@pytest.mark.parametrize("fault", BEFORE_THE_SERVER, ids=lambda fault: fault.__name__)
@each_request
def test_a_commit_survives_a_burst_that_is_shorter_than_its_tries(stage: Stage, fault: Fault, request_: str) -> None:
    stage.proxy.script(fault, *REQUESTS_OF_A_COMMIT[request_], times=S3Objects._TRIES - 1)
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)


@each_transient
def test_a_late_committer_gets_the_commit_that_stands_whatever_hits_it(stage: Stage, fault: Fault) -> None:
    commit(stage.truth(), who=1.0)
    hit = stage.proxy.script(fault, "PUT", "/manifest.json")
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=1.0)
    assert hit.hits == 1


@each_transient
@pytest.mark.parametrize("request_", ["manifest", "data"])
def test_a_fetch_survives_a_hit_on_any_of_its_requests(stage: Stage, fault: Fault, request_: str) -> None:
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


def test_a_commit_whose_every_answer_is_lost_is_found_by_the_next_attempt(stage: Stage) -> None:
    stage.proxy.script(faults.lose_answer, ".*", "/manifest.json", times=ALWAYS)
    with pytest.raises(TransientError):
        commit(stage.store(), who=1.0)
    stage.proxy.heal()
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=1.0)


# Time-outs


@each_request
def test_a_commit_survives_an_answer_later_than_its_patience(stage: Stage, request_: str) -> None:
    hit = stage.proxy.script(faults.answer_late, *REQUESTS_OF_A_COMMIT[request_])
    manifest = commit(stage.store(ImpatientS3(stage.url)), who=1.0)
    assert hit.hits == 1
    stage.proxy.heal()
    assert_committed_once(stage, manifest, who=1.0)


def held_back(stage: Stage, method: str, path: str) -> Callable[[], None]:
    """Hold back the next matching request. Returns how to let it go on, and wait until the server answered it."""
    arrived = []

    def fault(request: faults.Request) -> faults.Answer | None:
        answer = faults.arrive_late(request)
        arrived.append(answer)
        return answer

    stage.proxy.script(fault, method, path)

    def let_go() -> None:
        stage.proxy.heal()
        deadline = time.monotonic() + 20
        while not arrived and time.monotonic() < deadline:
            time.sleep(0.01)
        assert arrived, "nothing was held back"

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


def test_a_manifest_that_arrives_after_its_sender_gave_up_is_a_whole_commit(stage: Stage) -> None:
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


# Refusals

CALLS: dict[str, Callable[[Stage, S3Objects], Any]] = {
    "require": lambda stage, objects: objects.require(),
    "create": lambda stage, objects: objects.create("x", b""),
    "swap": lambda stage, objects: objects.swap("x", b"old", b"new"),
    "read": lambda stage, objects: objects.read("x"),
    "upload": lambda stage, objects: objects.upload(stage.file(), "x"),
    "download": lambda stage, objects: objects.download("x", stage.folder / "copy"),
    "walk": lambda stage, objects: list(objects.walk("x")),
    "delete": lambda stage, objects: objects.delete("x"),
    "commit": lambda stage, objects: commit(stage.store(objects)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_final_and_says_what_to_check(stage: Stage, call: str) -> None:
    stage.proxy.script(faults.forbidden, times=ALWAYS)
    with pytest.raises(StoreError, match=r"refused.*check AWS_ACCESS_KEY_ID"):
        CALLS[call](stage, stage.objects)
    assert len(stage.proxy.requests) == 1, "a refusal was tried again"


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"create", "upload", "commit", "delete"}))
def test_a_missing_bucket_is_final_and_is_named(stage: Stage, call: str) -> None:
    """Of the calls left out, this server makes the bucket, or calls a deletion done: `require` comes before them."""
    with pytest.raises(StoreError, match=r"bucket 'no-such-bucket' does not exist: create it"):
        CALLS[call](stage, below(stage.objects, "s3://no-such-bucket/x"))
    assert len(stage.proxy.requests) == 1, "a missing bucket was tried again"


@pytest.mark.parametrize("call", ["create", "upload", "commit"])
def test_a_server_that_makes_no_buckets_is_understood(stage: Stage, call: str) -> None:
    stage.proxy.script(faults.no_bucket, "PUT", times=ALWAYS)
    with pytest.raises(StoreError, match="does not exist: create it"):
        CALLS[call](stage, stage.objects)
    assert len(stage.proxy.requests) == 1


# Stale reads

STALE = [faults.not_there_yet, faults.as_it_was]
each_stale = pytest.mark.parametrize("fault", STALE, ids=lambda fault: fault.__name__)


@each_stale
def test_a_stale_read_while_committing_costs_nothing_but_a_look(stage: Stage, fault: Fault) -> None:
    hit = stage.proxy.script(fault, "GET", "/manifest.json")
    assert_committed_once(stage, commit(stage.store(), who=1.0), who=1.0)
    assert hit.hits == 1


@each_stale
def test_who_does_not_see_a_commit_makes_it_again_and_gets_it(stage: Stage, fault: Fault) -> None:
    commit(stage.truth(), who=1.0)
    stage.proxy.script(fault, "GET", "/manifest.json", times=2)
    store = stage.store()
    assert store.find(WORK) is None
    assert_committed_once(stage, commit(store, who=2.0), who=1.0)


@each_stale
@pytest.mark.parametrize("request_", ["manifest", "data"])
def test_a_fetch_looks_twice_before_it_calls_something_missing(stage: Stage, fault: Fault, request_: str) -> None:
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
    assert lease._move(), "the holder was told that it lost"
    assert hit.hits == 1
    lease.release("finished")


def test_a_beat_without_any_answer_does_not_hide_how_the_start_ended(
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


# Torn bodies

AMOUNTS = {"nothing": lambda n: 0, "half": lambda n: n // 2, "all but one": lambda n: n - 1}
each_amount = pytest.mark.parametrize("amount", AMOUNTS)


@each_amount
@pytest.mark.parametrize("tear", [faults.cut_off, faults.shortened], ids=lambda tear: tear.__name__)
def test_a_download_torn_on_the_way_is_downloaded_again(stage: Stage, tear: Any, amount: str) -> None:
    manifest = commit(stage.truth())
    hit = stage.proxy.script(tear(AMOUNTS[amount]), "GET", "/data.bin")
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == DATA
    assert hit.hits == 1
    assert stage.truth().find(WORK) == manifest, "an artifact that is whole was marked as damaged"


@each_amount
def test_a_download_that_always_breaks_off_is_transient_and_no_damage(stage: Stage, amount: str) -> None:
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
def test_a_manifest_torn_on_the_way_replaces_no_commit(stage: Stage, tear: Any, amount: str) -> None:
    commit(stage.truth(), who=1.0)
    stage.proxy.script(tear(AMOUNTS[amount]), "GET", "/manifest.json")
    store = stage.store()
    manifest = store.find(WORK) or commit(store, who=2.0)
    assert_committed_once(stage, manifest, who=1.0)


@each_amount
def test_torn_bytes_in_the_store_are_named_never_loaded_and_healed_by_the_next_commit(
    stage: Stage, amount: str
) -> None:
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


def test_other_bytes_of_the_same_length_and_a_missing_file_are_found_too(stage: Stage) -> None:
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
def test_healing_survives_a_hit_on_the_swap(stage: Stage, fault: Fault) -> None:
    damaged = commit(stage.truth(), who=1.0)
    stage.direct.delete(stored_file(damaged))
    with pytest.raises(CorruptArtifact):
        stage.truth().fetch(damaged.ref)
    hit = stage.proxy.script(fault, "PUT", "/manifest.json", nth=2)  # the first finds the damaged one standing
    assert_committed_once(stage, commit(stage.store(), who=2.0), who=2.0)
    assert hit.hits == 1


def test_a_store_that_damages_every_commit_is_given_up_not_tried_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArtifactStore, "_is_damaged", lambda store, manifest: True)
    with pytest.raises(TransientError, match="damaged as soon as it was committed"):
        commit(stage.store())
    assert stage.proxy.count("GET", "/manifest.json") <= 4 * artifacts_module._COMMIT_ROUNDS


# The check at start


@pytest.mark.parametrize(
    ("header", "message"), [("If-None-Match", "ignores If-None-Match"), ("If-Match", "does not honour If-Match")]
)
def test_a_server_that_ignores_a_condition_is_refused(stage: Stage, header: str, message: str) -> None:
    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    hit = stage.proxy.script(faults.without(header, *keys), "PUT", times=ALWAYS)
    with pytest.raises(StoreError, match=message):
        check_conditional_writes(stage.objects)
    assert hit.hits
    assert list(stage.direct.walk("probe")) == []


@each_transient
@pytest.mark.parametrize("nth", range(1, 6))
def test_an_exact_server_passes_the_check_though_a_write_is_hit(stage: Stage, fault: Fault, nth: int) -> None:
    hit = stage.proxy.script(fault, "PUT", "/probe/", nth=nth)
    check_conditional_writes(stage.objects)
    assert hit.hits == 1
    assert list(stage.direct.walk("probe")) == []


# Garbage


def test_a_collection_in_a_bucket_takes_exactly_what_no_run_needs(stage: Stage) -> None:
    store = stage.store()
    parent = commit(store, Work("demo", 1, {"name": "parent"}))
    kept = commit(store, Work("demo", 1, {"name": "kept"}, {"parent": parent.ref}))
    strange = commit(store, Work("demo", 1, {"name": "strange"}))
    left = ["artifacts/demo/key/attempt/data.bin", "checkpoints/key/head.json", "probe/abc", "scratch/tmp/half"]
    for path in left:
        stage.direct.create(path, b"x")
    ledger = Ledger(stage.direct, "run")
    ledger.open({}, {"policy": kept.ref.to_json()})
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
def test_a_collection_survives_a_hit(stage: Stage, fault: Fault, method: str) -> None:
    stage.direct.create("artifacts/demo/key/attempt/data.bin", b"x")
    hit = stage.proxy.script(fault, method)
    store = stage.store()
    delete_garbage(store, find_garbage(store, grace_seconds=-60))
    assert hit.hits == 1
    assert list(stage.direct.walk("")) == []


# Clocks


def half_an_hour_of_grace(objects: Any) -> set[str]:
    garbage = find_garbage(ArtifactStore(objects), grace_seconds=1800)
    return {entry.path for entry in (*garbage.commits, *garbage.data)}


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
    """The clock of a network disk, which stamps the files, is another machine's."""
    objects = LocalObjects(tmp_path)
    objects.create("artifacts/demo/key/attempt/young.bin", b"being written")
    objects.create("artifacts/demo/key/attempt/old.bin", b"left behind")
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "artifacts/demo/key/attempt/old.bin", (hour_ago, hour_ago))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    assert half_an_hour_of_grace(objects) == {"artifacts/demo/key/attempt/old.bin"}


def test_data_that_is_older_than_its_upload_counts_as_young(tmp_path: Path) -> None:
    """On one disk an upload is a link, which is as old as the file: a model that was downloaded last year, say."""
    objects = LocalObjects(tmp_path / "store")
    file = tmp_path / "weights"
    file.write_bytes(b"old")
    os.utime(file, (1e9, 1e9))
    objects.upload(file, "artifacts/policy/key/attempt/weights")
    assert half_an_hour_of_grace(objects) == set()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_lease_does_not_mind_a_clock_that_jumps(stage: Stage, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 0.2)
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


# A full disk


def leftovers(root: Path) -> list[str]:
    return [file.name for file in root.rglob(".*") if file.name != ".lock"]


def fail_at(point: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    (folder / "plan").write_text(f"no-space {point}\n")
    monkeypatch.setenv(failpoints._ENVIRONMENT, str(folder))


@pytest.mark.parametrize("point", ["upload.written/demo", "create.written/demo"])
def test_no_space_at_a_step_of_a_commit_leaves_nothing_behind(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(LocalObjects(tmp_path / "store"), cache=tmp_path / "cache")
    fail_at(point, monkeypatch, tmp_path / "failpoints")
    with pytest.raises(DiskFull, match="optune gc"):
        commit(store)
    assert (tmp_path / "failpoints" / "reached").exists()
    assert store.find(WORK) is None
    assert leftovers(tmp_path / "store") == []
    assert commit(store) == store.find(WORK)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "replace"])
def test_any_system_call_may_find_the_disk_full(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(tmp_path / "store")
    objects.create("x", b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(file: Path, body: bytes) -> None:
        file.write_bytes(body[: len(body) // 2])
        full()

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(objects_module, "write", half_written)
        else:
            patch.setattr(os, call, full)
        if call != "replace":
            with pytest.raises(DiskFull):
                objects.create("y", b"new")
        if call != "link":
            with pytest.raises(DiskFull):
                objects.swap("x", b"old", b"new")
    assert (objects.read("x"), objects.read("y")) == (b"old", None)
    assert leftovers(tmp_path) == []
    assert objects.create("y", b"new") == b"new" and objects.swap("x", b"old", b"new")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if not mounted or mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip() if mounted else 'no mount'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_runs_full_while_committing_is_named_and_used_again_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(LocalObjects(small_disk / "store"), cache=tmp_path / "cache")
    first = commit(store, body=b"a" * 100_000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "data.bin").write_bytes(b"b" * 200_000)
    other = Work("demo", 1, {"rho": 0.7})
    with pytest.raises(DiskFull, match=r"ENOSPC.*optune gc"):
        store.commit(other, source)
    assert store.find(other) is None
    assert leftovers(small_disk) == []
    assert (ArtifactStore(store.objects).fetch(first.ref) / "data.bin").stat().st_size == 100_000
    store.discard(first.ref)
    again = store.commit(other, source)
    assert (ArtifactStore(store.objects).fetch(again.ref) / "data.bin").stat().st_size == 200_000


def test_records_survive_a_full_disk(small_disk: Path) -> None:
    objects = LocalObjects(small_disk / "store")
    ledger = Ledger(objects, "run")
    ledger.commit_iteration(0, {"n": 0})
    objects.create("x", b"old")
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(DiskFull):
        ledger.commit_iteration(1, {"n": 1})
    with pytest.raises(DiskFull):
        objects.swap("x", b"old", b"new")
    assert (ledger.iterations(), objects.read("x")) == ([{"n": 0}], b"old")
    assert leftovers(small_disk) == []
    ballast.unlink()
    assert ledger.commit_iteration(1, {"n": 1}) == {"n": 1}
    assert objects.swap("x", b"old", b"new")


def test_a_full_cache_is_no_damage_to_the_store(stage: Stage, small_disk: Path) -> None:
    body = b"x" * 400_000
    manifest = commit(stage.truth(), body=body)
    with pytest.raises(DiskFull, match="no space"):
        ArtifactStore(stage.objects, cache=small_disk).fetch(manifest.ref)
    assert stage.truth().find(WORK) == manifest
    assert [file for file in small_disk.rglob("*") if file.is_file()] == []
    assert (stage.store().fetch(manifest.ref) / "data.bin").read_bytes() == body


def test_collecting_garbage_makes_room_on_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(small_disk / "store")
    store = ArtifactStore(objects)
    (small_disk / "left").write_bytes(b"x" * 150_000)
    objects.upload(small_disk / "left", "artifacts/demo/key/attempt/data.bin")
    (small_disk / "left").unlink()
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    delete_garbage(store, find_garbage(store, grace_seconds=-60))
    assert commit(store).files.keys() == {"data.bin"}
