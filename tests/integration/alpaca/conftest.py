"""A fake annotator, and a process that is restored after the library changed it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.fake_annotator import FakeAnnotator, longer
from tests.fake_judge import FakeJudge, serving


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Restore the root logger and the environment, which importing the library changes."""
    level, environment = logging.getLogger().level, dict(os.environ)
    yield
    logging.getLogger().setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with serving(longer, FakeAnnotator) as server:
        yield server
