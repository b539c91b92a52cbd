"""A server that refuses, or does not keep the conditions of writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from optune_core.errors import StoreError
from optune_core.storage.backends import check_conditional_writes
from optune_core.storage.s3 import S3Objects
from tests.faults import s3_proxy as faults
from tests.faults.s3_proxy import ALWAYS, Fault
from tests.faults.storage.proxied import Stage, below, commit, each_transient

pytestmark = pytest.mark.faults

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
def test_a_refusal_is_not_retried_and_names_what_to_check(stage: Stage, call: str) -> None:
    stage.proxy.script(faults.forbidden, times=ALWAYS)
    with pytest.raises(StoreError, match=r"refused.*Check AWS_ACCESS_KEY_ID"):
        CALLS[call](stage, stage.objects)
    assert len(stage.proxy.requests) == 1, "a refusal was tried again"


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"create", "upload", "commit", "delete"}))
def test_a_missing_bucket_is_not_retried_and_is_named(stage: Stage, call: str) -> None:
    """The calls left out do not fail: the server makes the bucket for them, or reports a deletion as done."""
    with pytest.raises(StoreError, match=r"bucket 'no-such-bucket' does not exist\. Create it"):
        CALLS[call](stage, below(stage.objects, "s3://no-such-bucket/x"))
    assert len(stage.proxy.requests) == 1, "a missing bucket was tried again"


@pytest.mark.parametrize("call", ["create", "upload", "commit"])
def test_a_missing_bucket_is_reported_by_writes(stage: Stage, call: str) -> None:
    stage.proxy.script(faults.no_bucket, "PUT", times=ALWAYS)
    with pytest.raises(StoreError, match=r"does not exist\. Create it"):
        CALLS[call](stage, stage.objects)
    assert len(stage.proxy.requests) == 1


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
def test_a_correct_server_passes_the_check_though_a_write_fails(stage: Stage, fault: Fault, nth: int) -> None:
    hit = stage.proxy.script(fault, "PUT", "/probe/", nth=nth)
    check_conditional_writes(stage.objects)
    assert hit.hits == 1
    assert list(stage.direct.walk("probe")) == []
