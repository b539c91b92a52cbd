"""The lease of the run that this process works on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger

from optune_core.config import OptuneConfig
from optune_core.storage.lease import Lease, State, hold
from optune_core.storage.objects import Objects

_held: Lease | None = None


@contextmanager
def working_on(objects: Objects, run: str, config: OptuneConfig, *, unasked: bool) -> Iterator[None]:
    """Hold the run's lease for the block, so that no other process works on it, and record how the block ended.

    Args:
        objects: the store.
        run: name of the run.
        config: configuration of this start.
        unasked: True for a start by a schedule or an automation, which no person asked for.

    Raises:
        RunBusy: another process works on the run.
        OptuneError: the start is unasked, and too many starts in a row committed nothing.
    """
    global _held
    logger = get_run_logger()

    def lost() -> None:
        logger.error(
            "run %s was taken over by another process, because this one did not renew its lease in time: it ends now",
            run,
        )
        os.kill(os.getpid(), signal.SIGTERM)

    settings = config.model_dump(mode="json")
    with hold(objects, run, settings, unasked=unasked, on_lost=lost, log=logger.info) as lease:
        _held = lease
        try:
            yield
        finally:
            _held = None


def progressed() -> None:
    """Record that this process has committed something for the run whose lease it holds."""
    if _held is not None:
        _held.progressed()


def let_go(state: State, message: str) -> None:
    """Release the lease, if this process holds one. To be called by a thread that is about to end the process."""
    if _held is not None:
        _held.release(state, message)
