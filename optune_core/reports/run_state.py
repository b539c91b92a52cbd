"""The state of a run: its committed and its wanted iterations, and how its last start ended."""

from __future__ import annotations

from typing import Any

from optune_core.errors import OptuneError
from optune_core.storage import Ledger
from optune_core.storage.lease import LeaseRecord, is_gone, read_lease
from optune_core.storage.ledger import no_such_run


def require_run(ledger: Ledger) -> None:
    """Raise OptuneError, with the names of the store's runs, if the run was never started."""
    if ledger.config() is None and read_lease(ledger.objects, ledger.run) is None:
        raise OptuneError(no_such_run(ledger.objects, ledger.run))


def progress(ledger: Ledger) -> dict[str, Any]:
    """Return the committed and the wanted iterations, and the state of the last start."""
    lease = read_lease(ledger.objects, ledger.run)
    config = lease.config if lease else ledger.config()
    return {
        "run": ledger.run,
        "committed": len(ledger.iterations()),
        "wanted": config["iterations"] if config else None,
        **last_start(lease),
    }


def last_start(lease: LeaseRecord | None) -> dict[str, Any]:
    """Return `state`, `where` and `message` of a run's last start; all empty for a run that was never started.

    A start is `interrupted` if the holder of its lease is gone.
    """
    if lease is None:
        return {"state": None, "where": None, "message": ""}
    if lease.holder is not None and is_gone(lease):
        return {"state": "interrupted", "where": None, "message": f"killed: {lease.where}"}
    return {"state": lease.state, "where": lease.where if lease.holder else None, "message": lease.message}


def state_text(row: dict[str, Any]) -> str:
    """Write the state of a run's last start: with the lease's holder while it works, with the reason if it ended."""
    detail = row["where"] or row["message"]
    return f"{row['state'] or 'unknown'}{f' ({detail})' if detail else ''}"
