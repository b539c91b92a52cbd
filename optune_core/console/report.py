"""The command `optune report`: one page about one or several runs, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optune_core.errors import OptuneError
from optune_core.reports.page import report
from optune_core.storage import ArtifactStore, open_objects


def write_report(store_url: str, runs: Sequence[str], out: Path) -> None:
    """Write the page about these runs to a file.

    Raises:
        OptuneError: there is no such run, or the file cannot be written.
    """
    store = ArtifactStore(open_objects(store_url))
    page = report(store, runs)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OptuneError(f"--out {str(out)!r} cannot be written ({error.strerror}): name another file") from error
