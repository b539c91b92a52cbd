"""Logs of errors that users can fix: only the message, because a traceback would hide it."""

from __future__ import annotations

import logging

from optune_core.errors import OptuneError


def quiet_known_errors() -> None:
    """Remove the tracebacks of OptuneErrors from the logs of flow and task runs.

    To be called within a flow run, because Prefect sets up these loggers, without earlier filters, at its start.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], OptuneError):
        record.exc_info = None
        record.exc_text = None
    return True
