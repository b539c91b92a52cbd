"""How a run stands: what is committed of what is wanted, and how its last start ended."""

from __future__ import annotations

from typing import Any

from optune_core.errors import OptuneError
from optune_core.storage import Ledger
from optune_core.storage.lease import LeaseRecord, is_gone, read_lease
from optune_core.storage.ledger import no_such_run


def require_run(ledger: Ledger) -> None:
    """Raises OptuneError, with the store's runs, unless the run was ever started."""
    if ledger.config() is None and read_lease(ledger.objects, ledger.run) is None:
        raise OptuneError(no_such_run(ledger.objects, ledger.run))


def progress(ledger: Ledger) -> dict[str, Any]:
    """Committed and wanted iterations, and what the lease says."""
    lease = read_lease(ledger.objects, ledger.run)
    config = lease.config if lease else ledger.config()
    return {
        "run": ledger.run,
        "committed": len(ledger.iterations()),
        "wanted": config["iterations"] if config else None,
        **last_start(lease),
    }


def last_start(lease: LeaseRecord | None) -> dict[str, Any]:
    """`state`, `where` and `message` of a run's last start; a holder that is gone was interrupted. All empty for a run
    that was never started."""
    if lease is None:
        return {"state": None, "where": None, "message": ""}
    if lease.holder is not None and is_gone(lease):
        return {"state": "interrupted", "where": None, "message": f"killed: {lease.where}"}
    return {"state": lease.state, "where": lease.where if lease.holder else None, "message": lease.message}


def standing(row: dict[str, Any]) -> str:
    """How the last start of a run stands: `working` names who holds the lease, an end its reason."""
    detail = row["where"] or row["message"]
    return f"{row['state'] or 'unknown'}{f' ({detail})' if detail else ''}"
