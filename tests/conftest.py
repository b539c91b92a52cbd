"""Fixtures of all tests: a tiny real model, a real Prefect server, a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny import build_model, write_prompts

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)

# Examples have no deadline, since their duration depends on the machine.
settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny policy and prompts, to which tests add configurations."""
    folder = tmp_path_factory.mktemp("tiny")
    build_model(folder / "policy")
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's home folder in this test session, so that the user's is not touched."""
    home = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(home / "storage")
    return home


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path) -> Iterator[None]:
    """Run a real Prefect server, for flows that a test calls."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty bucket on a real S3 server, with the credentials in the environment."""
    from deployments.local.seaweedfs import SeaweedFS

    with SeaweedFS(tmp_path_factory.mktemp("s3"), bucket="tests") as server:
        before = dict(os.environ)
        os.environ.update(server.environment())
        yield "s3://tests"
        os.environ.clear()
        os.environ.update(before)
