"""What is only shown may fail: a server that is away must not cost a stage that is half done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import get_run_logger


@contextmanager
def only_shown() -> Iterator[None]:
    """Log what Prefect's server did not take, and go on."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("not shown, Prefect's server is away: %s", error)
