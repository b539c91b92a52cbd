"""Records of which runs belong to a sweep: `<root>/sweeps/<sweep>/cells/<run>.json`, created once for each cell.

A sweep grows by further records; none is changed or removed. The results of a cell are in the records of its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from optune_core.errors import StoreError
from optune_core.parts.names import validate_name
from optune_core.storage.canonical import canonical_json
from optune_core.storage.objects import Objects


def all_cells(objects: Objects) -> set[str]:
    """Return the runs that are cells of any sweep."""
    paths = [PurePosixPath(entry.path) for entry in objects.walk("sweeps")]
    return {path.stem for path in paths if path.parent.name == "cells"}


class SweepRecord:
    """Records and figures of one sweep."""

    def __init__(self, objects: Objects, sweep: str) -> None:
        try:
            validate_name(sweep)
        except ValueError as error:
            raise StoreError(f"sweep {error}") from error
        self.objects = objects
        self._base = f"sweeps/{sweep}"

    def add(self, run: str, values: Mapping[str, Any]) -> None:
        """Record that a run is a cell, unless it is recorded. A run's name contains its values, so these agree.

        Args:
            run: name of the cell's run.
            values: value of each swept field.
        """
        body = canonical_json({"run": run, "values": dict(values)})
        self.objects.create(f"{self._base}/cells/{validate_name(run)}.json", body)

    def cells(self) -> list[dict[str, Any]]:
        """Return `run` and `values` of the cells of all starts, sorted by name. From a listing, so for display only."""
        bodies = [self.objects.read(f"{self._base}/cells/{name}") for name in self.objects.names(f"{self._base}/cells")]
        return [json.loads(body) for body in bodies if body is not None]

    def keep_figure(self, file: Path) -> str:
        """Store a figure beside the records, in place of an earlier one of the same name.

        Returns:
            Location of the figure, as a path or URL for people.
        """
        path = f"{self._base}/figures/{file.name}"
        self.objects.upload(file, path)
        return f"{self.objects.url}/{path}"
