"""The backends of the store by URL, and the check that a backend's conditional writes can be trusted."""

from __future__ import annotations

import uuid
from pathlib import Path

from optune_core.errors import StoreError
from optune_core.storage.local import LocalObjects
from optune_core.storage.objects import Objects
from optune_core.storage.s3 import S3Objects


def open_objects(url: str) -> Objects:
    """Open a store by URL or path.

    Raises:
        StoreError: the URL has a scheme whose conditional writes this project has not verified.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return LocalObjects(Path(url.removeprefix("file://")).expanduser().absolute())
    if scheme == "s3":
        return S3Objects(url.rstrip("/"))
    raise StoreError(
        f"store {url!r}: the scheme {scheme!r} is not supported, because its create-if-absent was not verified by "
        "this project. Use a local folder or s3://bucket/prefix"
    )


def check_conditional_writes(objects: Objects) -> None:
    """Check that commits in this store are exclusive, before any work is spent.

    Raises:
        StoreError: the store let a second writer overwrite an object, or it cannot be written or read.
    """
    objects.require()
    path = f"probe/{uuid.uuid4().hex}"
    first, second = b"first " + path.encode(), b"second " + path.encode()
    created = [objects.create(path, first), objects.create(path, second), objects.read(path)]
    swapped = [objects.swap(path, second, b"third"), objects.swap(path, first, second), objects.read(path)]
    exact = objects.refuses_stale_swap(path)
    objects.delete(path)
    advice = "Use a store with conditional writes, and keep bucket versioning off"
    if created != [first, first, first]:
        raise StoreError(
            f"store {objects.url!r} ignores If-None-Match: a second writer replaced an existing object. {advice}"
        )
    if swapped != [False, True, second] or not exact:
        raise StoreError(f"store {objects.url!r} does not honour If-Match, so no lease can be held in it. {advice}")
