"""A store behind a scripted proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.s3_proxy import S3Proxy
from tests.faults.storage.proxied import QuickS3, Stage, below


@pytest.fixture(scope="package")
def connected(s3_bucket: str) -> Iterator[tuple[S3Proxy, QuickS3, QuickS3]]:
    """The proxy, a client of the server and one of the proxy, made once because that takes longer than a test."""
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
