"""Things that are only shown in Prefect's UI: if its server cannot be reached, the stage continues without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import get_run_logger


@contextmanager
def only_shown() -> Iterator[None]:
    """Log a failed request to Prefect's server in the block as a warning, and continue."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("not shown in the UI, since Prefect's server cannot be reached: %s", error)
