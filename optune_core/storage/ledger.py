"""The run ledger: an immutable record for the run, for each iteration and for each evaluation.

The state of every run follows from the store alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from optune_core.errors import ConfigDrift, StoreError
from optune_core.parts.names import validate_name
from optune_core.parts.section import Section, free_fields
from optune_core.storage.canonical import canonical_json
from optune_core.storage.manifest import read_record
from optune_core.storage.objects import Objects


class Ledger:
    """Records of one run below `<root>/runs/<run>/`."""

    def __init__(self, objects: Objects, run: str) -> None:
        try:
            validate_name(run)
        except ValueError as error:
            raise StoreError(f"run {error}") from error
        self.objects = objects
        self.run = run

    def check(self, config: Section, inputs: Mapping[str, Any] | None = None) -> None:
        """Compare with what the run was created with, if it exists.

        Fields that change no result (`free_fields`) may differ.

        Args:
            config: resolved configuration.
            inputs: identities of the artifacts that all iterations read; None where they are not known yet.

        Raises:
            ConfigDrift: the configuration or the inputs differ; the message lists each difference.
        """
        if (body := self.objects.read(f"{self._base}/run.json")) is not None:
            self._refuse_drift(json.loads(body), config, inputs)

    def open(self, config: Section, inputs: Mapping[str, Any]) -> None:
        """Create the run, or find it created with the same configuration and inputs.

        Raises:
            ConfigDrift: the run exists with another configuration or other inputs; the message lists each difference.
        """
        body = canonical_json({"run": self.run, "config": config.model_dump(mode="json"), "inputs": dict(inputs)})
        self._refuse_drift(json.loads(self.objects.create(f"{self._base}/run.json", body)), config, inputs)

    def _refuse_drift(self, recorded: Mapping[str, Any], config: Section, inputs: Mapping[str, Any] | None) -> None:
        free = tuple(f"{name}{end}" for name in free_fields(config) for end in ":.")
        lines = differences(recorded["config"], config.model_dump(mode="json"))
        drift = [line for line in lines if not line.startswith(free)]
        if inputs is not None:
            drift += differences(recorded["inputs"], json.loads(canonical_json(dict(inputs))), "inputs")
        if drift:
            lines = [f"  - {line}" for line in drift]
            raise ConfigDrift(
                f"run {self.run!r} in {self.objects.url!r} was created with another configuration or other inputs:\n"
                + "\n".join(lines)
                + "\nPut them back, or start a new run with --new-run or --run NAME: unchanged stages are reused."
            )

    def config(self) -> dict[str, Any] | None:
        """Return the configuration that the run was created with, or None if the run does not exist."""
        body = self.objects.read(f"{self._base}/run.json")
        return None if body is None else json.loads(body)["config"]

    def inputs(self) -> dict[str, Any]:
        """Return the identities of the artifacts that all iterations read; empty while they are being prepared."""
        body = self.objects.read(f"{self._base}/run.json")
        return {} if body is None else dict(read_record(body)["inputs"])

    def show_page(self, page: str) -> str:
        """Store the run's page, in place of an earlier one. It only shows: all its facts are in other objects.

        Args:
            page: HTML.

        Returns:
            Location of the page, as a path or URL for people.
        """
        path = f"{self._base}/report.html"
        # If another process stores its page at the same time, either page may remain.
        self.objects.swap(path, self.objects.read(path), page.encode())
        return f"{self.objects.url}/{path}"

    def commit_iteration(self, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the record of an iteration once. Returns the committed record: this one, or an earlier commit's."""
        return self._commit("iterations", iteration, record)

    def iteration(self, iteration: int) -> dict[str, Any] | None:
        """Return the committed record of an iteration, or None."""
        return self._read("iterations", iteration)

    def iterations(self) -> list[dict[str, Any]]:
        """Return all committed records of iterations, in order, read from 0 up to the first gap without a listing."""
        records: list[dict[str, Any]] = []
        while (record := self.iteration(len(records))) is not None:
            records.append(record)
        return records

    def commit_held_out(self, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the held-out rewards of π_iteration once. Returns the committed record, ours or an earlier one."""
        return self._commit("held_out", iteration, record)

    def held_out(self, iteration: int) -> dict[str, Any] | None:
        """Return the committed held-out rewards of π_iteration, or None."""
        return self._read("held_out", iteration)

    def commit_evaluation(self, name: str, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """Commit what the evaluation of this name says of π_iteration once. Returns the committed record."""
        return self._commit(f"evaluations/{validate_name(name)}", iteration, record)

    def evaluation(self, name: str, iteration: int) -> dict[str, Any] | None:
        """Return what the evaluation of this name says of π_iteration, or None."""
        return self._read(f"evaluations/{validate_name(name)}", iteration)

    def evaluations(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the committed records of evaluations, by name and iteration, found by a listing.

        Args:
            kind: only those of this kind; None: all.
        """
        records = self._named("evaluations")
        return [record for record in records if kind is None or record["kind"] == kind]

    def _named(self, kind: str) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for name in self.objects.names(f"{self._base}/{kind}"):
            for file in self.objects.names(f"{self._base}/{kind}/{name}"):
                iteration = file.removesuffix(".json")
                # A killed process may have left a temporary file, whose name is no number.
                if iteration.isdecimal() and (record := self._read(f"{kind}/{name}", int(iteration))) is not None:
                    records.append(record)
        return sorted(records, key=lambda record: (record["name"], record["iteration"]))

    def _commit(self, kind: str, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        body = self.objects.create(self._path(kind, iteration), canonical_json(dict(record)))
        committed: dict[str, Any] = read_record(body)
        return committed

    def _read(self, kind: str, iteration: int) -> dict[str, Any] | None:
        body = self.objects.read(self._path(kind, iteration))
        return None if body is None else read_record(body)

    def _path(self, kind: str, iteration: int) -> str:
        return f"{self._base}/{kind}/{iteration:04d}.json"

    @property
    def _base(self) -> str:
        return f"runs/{self.run}"


def list_runs(objects: Objects) -> list[str]:
    """Return the names of the runs in a store."""
    return objects.names("runs")


def no_such_run(objects: Objects, run: str, wanted: str = "") -> str:
    """Write the message for a run that does not exist.

    Args:
        objects: the store.
        run: name of the run.
        wanted: purpose for which the run was looked for, such as `to evaluate`; added to the message.
    """
    known = ", ".join(list_runs(objects)) or "none"
    return f"store {objects.url!r} has no run {run!r}{wanted and f' {wanted}'}; its runs: {known}"


def unused_name(objects: Objects, run: str) -> str:
    """Return the first name of run-2, run-3, … that no run has."""
    taken = set(list_runs(objects))
    return next(name for number in count(2) if (name := f"{run}-{number}") not in taken)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List the differences between two JSON values, one line `field: old → new` for every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {old!r} → {new!r}"]
