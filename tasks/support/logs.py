"""Errors that users can mend are logged as their message; a traceback would hide it."""

from __future__ import annotations

import logging

from optune_core.errors import OptuneError


def quiet_known_errors() -> None:
    """Drop the traceback of OptuneErrors from the logs of flow and task runs.

    To be called in a flow run: Prefect sets these loggers up when the first one starts, and forgets filters then.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], OptuneError):
        record.exc_info = None
        record.exc_text = None
    return True
