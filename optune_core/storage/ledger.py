"""The run ledger: an immutable record for a run, for each iteration, for each evaluation. The store alone tells where
every run stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from optune_core.errors import ConfigDrift, StoreError
from optune_core.parts.names import validate_name
from optune_core.parts.section import Section, free_fields
from optune_core.storage.canonical import canonical_json
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
            config: the resolved configuration.
            inputs: identities of the artifacts that all iterations read; None where they are not known yet.

        Raises:
            ConfigDrift: another configuration, or inputs that have changed; the message lists what differs.
        """
        if (body := self.objects.read(f"{self._base}/run.json")) is not None:
            self._refuse_drift(json.loads(body), config, inputs)

    def open(self, config: Section, inputs: Mapping[str, Any]) -> None:
        """Create the run, or find it created with the same configuration and inputs.

        Raises:
            ConfigDrift: as `check`.
        """
        body = canonical_json({"run": self.run, "config": config.model_dump(mode="json"), "inputs": dict(inputs)})
        self._refuse_drift(json.loads(self.objects.create(f"{self._base}/run.json", body)), config, inputs)

    def _refuse_drift(self, recorded: Mapping[str, Any], config: Section, inputs: Mapping[str, Any] | None) -> None:
        free = tuple(f"{name}{end}" for name in free_fields(config) for end in ":.")
        lines = differences(recorded["config"], config.model_dump(mode="json"))
        drift = [line for line in lines if not line.startswith(free)]
        if inputs is not None:
            drift += differences(recorded["inputs"], inputs, "inputs")
        if drift:
            lines = [f"  - {line}" for line in drift]
            raise ConfigDrift(
                f"run {self.run!r} in {self.objects.url!r} was created with another configuration or other inputs:\n"
                + "\n".join(lines)
                + "\nPut them back, or start a new run with --new-run or --run NAME: unchanged stages are reused."
            )

    def config(self) -> dict[str, Any] | None:
        """The configuration that the run was created with, or None if there is no such run."""
        body = self.objects.read(f"{self._base}/run.json")
        return None if body is None else json.loads(body)["config"]

    def inputs(self) -> dict[str, Any]:
        """Identities of the artifacts that all iterations read; empty while they are being prepared."""
        body = self.objects.read(f"{self._base}/run.json")
        return {} if body is None else dict(json.loads(body)["inputs"])

    def show_page(self, page: str) -> str:
        """Put the run's page in the place of an earlier one. A view: whatever it says stands elsewhere in the store.

        Returns:
            Where it stands, as a path or URL for people.
        """
        path = f"{self._base}/report.html"
        # Whether ours or one that was made at the same time stands is all the same.
        self.objects.swap(path, self.objects.read(path), page.encode())
        return f"{self.objects.url}/{path}"

    def commit_iteration(self, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """Commit an iteration once. Returns the record that stands: this one, or an earlier commit's."""
        return self._commit("iterations", iteration, record)

    def iteration(self, iteration: int) -> dict[str, Any] | None:
        """The committed record of an iteration, or None."""
        return self._read("iterations", iteration)

    def iterations(self) -> list[dict[str, Any]]:
        """All committed records, in order. Reads from 0 up to the first gap; needs no listing."""
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
                iteration = file.removesuffix(".json")  # a killed writer's temporary file has no such name
                if iteration.isdecimal() and (record := self._read(f"{kind}/{name}", int(iteration))) is not None:
                    records.append(record)
        return sorted(records, key=lambda record: (record["name"], record["iteration"]))

    def _commit(self, kind: str, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
        body = self.objects.create(self._path(kind, iteration), canonical_json(dict(record)))
        standing: dict[str, Any] = json.loads(body)
        return standing

    def _read(self, kind: str, iteration: int) -> dict[str, Any] | None:
        body = self.objects.read(self._path(kind, iteration))
        return None if body is None else json.loads(body)

    def _path(self, kind: str, iteration: int) -> str:
        return f"{self._base}/{kind}/{iteration:04d}.json"

    @property
    def _base(self) -> str:
        return f"runs/{self.run}"


def list_runs(objects: Objects) -> list[str]:
    """Names of the runs in a store."""
    return objects.names("runs")


def no_such_run(objects: Objects, run: str, wanted: str = "") -> str:
    """What to say of a run that a store does not have.

    Args:
        wanted: what for, such as `to evaluate`.
    """
    known = ", ".join(list_runs(objects)) or "none"
    return f"store {objects.url!r} has no run {run!r}{wanted and f' {wanted}'}; its runs: {known}"


def unused_name(objects: Objects, run: str) -> str:
    """The first of run-2, run-3, … that no run has."""
    taken = set(list_runs(objects))
    return next(name for number in count(2) if (name := f"{run}-{number}") not in taken)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`field: old → new`, one line for every leaf that differs between two JSON values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {old!r} → {new!r}"]
