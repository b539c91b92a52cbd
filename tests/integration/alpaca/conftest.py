"""A fake annotator, and the state of the process as the library found it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.fake_annotator import FakeAnnotator, longer
from tests.fake_judge import FakeJudge, serving


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Importing the library changes the root logger and the environment, which other tests read and hand on."""
    level, environment = logging.getLogger().level, dict(os.environ)
    yield
    logging.getLogger().setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with serving(longer, FakeAnnotator) as server:
        yield server
