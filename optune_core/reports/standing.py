"""How a run stands: what is committed of what is wanted, and how its last start ended."""

from __future__ import annotations

from typing import Any

from optune_core.errors import OptuneError
from optune_core.storage import Ledger
from optune_core.storage.lease import is_gone, read_lease
from optune_core.storage.ledger import list_runs


def require_run(ledger: Ledger) -> None:
    """Raises OptuneError, with the store's runs, unless the run was ever started."""
    if ledger.config() is None and read_lease(ledger.objects, ledger.run) is None:
        known = ", ".join(list_runs(ledger.objects)) or "none"
        raise OptuneError(f"store {ledger.objects.url!r} has no run {ledger.run!r}; its runs: {known}")


def progress(ledger: Ledger) -> dict[str, Any]:
    """Committed and wanted iterations, and what the lease says."""
    lease = read_lease(ledger.objects, ledger.run)
    config = lease.config if lease else ledger.config()
    status: dict[str, Any] = {
        "run": ledger.run,
        "committed": len(ledger.iterations()),
        "wanted": config["iterations"] if config else None,
        "state": lease.state if lease else None,
        "where": lease.where if lease and lease.holder else None,
        "message": lease.message if lease else "",
    }
    if lease is not None and lease.holder is not None and is_gone(lease):
        status |= {"state": "interrupted", "where": None, "message": f"killed: {lease.where}"}
    return status


def standing(row: dict[str, Any]) -> str:
    """How the last start of a run stands: `working` names who holds the lease, an end its reason."""
    detail = row["where"] or row["message"]
    return f"{row['state'] or 'unknown'}{f' ({detail})' if detail else ''}"
