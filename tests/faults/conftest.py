"""Counts of the fault suite, shown at the end of a session and written to the file OPTUNE_FAULT_COUNTS."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.faults.uninterrupted import Uninterrupted, run_uninterrupted

_COUNTS: defaultdict[str, float] = defaultdict(float)


@pytest.fixture(scope="session")
def tally() -> defaultdict[str, float]:
    """Numbers to report by name, to which tests add."""
    return _COUNTS


@pytest.fixture(scope="session")
def api(prefect_server: None) -> dict[str, str]:
    """The environment of a process that reports to this session's Prefect server."""
    from prefect.settings import PREFECT_API_URL

    return {"PREFECT_API_URL": str(PREFECT_API_URL.value())}


@pytest.fixture(scope="session")
def uninterrupted(tiny: Path, api: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return run_uninterrupted(tiny, tmp_path_factory.mktemp("uninterrupted"), api)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes that share the tests
        session.config.workeroutput["fault_counts"] = dict(_COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for name, value in getattr(node, "workeroutput", {}).get("fault_counts", {}).items():
        _COUNTS[name] += value


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _COUNTS:
        terminalreporter.section("faults")
        for name, value in sorted(_COUNTS.items()):
            terminalreporter.write_line(f"{name}: {value:g}")
        if path := os.environ.get("OPTUNE_FAULT_COUNTS"):
            Path(path).write_text(json.dumps(_COUNTS, indent=2, sort_keys=True))
