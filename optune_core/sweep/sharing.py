"""The time that the cells of a sweep save by sharing artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from optune_core.storage import ArtifactStore, Ledger, Manifest, Ref
from optune_core.storage.gc import references

_READERS = 16

Artifact = tuple[str, str]
"""(stage, key)."""


@dataclass(frozen=True)
class Sharing:
    """Seconds of work from the artifacts' manifests; simultaneous work of several engines is added up."""

    made: float
    """Seconds of the artifacts of all cells, each counted once."""
    unshared: float
    """Seconds of the artifacts of all cells, counted for every cell: the time without sharing."""
    artifacts: int
    shared: int
    """Artifacts that belong to more than one cell."""

    @property
    def saved(self) -> float:
        return self.unshared - self.made


def sharing(store: ArtifactStore, runs: Sequence[str]) -> Sharing:
    """Add up the work in the artifacts that these runs have committed, and in their ancestors.

    Raises:
        StoreError: a run refers to an artifact that is gone.
    """
    manifests: dict[Artifact, Manifest] = {}
    owners = {run: _artifacts(store, Ledger(store.objects, run), manifests) for run in runs}
    counts = {artifact: sum(artifact in owned for owned in owners.values()) for artifact in manifests}
    seconds = {artifact: seconds_of_work(manifest) for artifact, manifest in manifests.items()}
    return Sharing(
        made=sum(seconds.values()),
        unshared=sum(seconds[artifact] * count for artifact, count in counts.items()),
        artifacts=len(manifests),
        shared=sum(count > 1 for count in counts.values()),
    )


def seconds_of_work(manifest: Manifest) -> float:
    """Return the seconds that an artifact took to make: all its timings except the time of day."""
    return sum(seconds for name, seconds in manifest.timing.items() if name != "ended_at")


def _artifacts(store: ArtifactStore, ledger: Ledger, manifests: dict[Artifact, Manifest]) -> set[Artifact]:
    """Return the artifacts that a run's records refer to, with their ancestors; each manifest is read once."""
    reached: set[Artifact] = set()
    level = set(_recorded(ledger))
    while level:
        fresh = [ref for ref in level if (ref.stage, ref.key) not in manifests]
        with ThreadPoolExecutor(_READERS) as readers:
            for manifest in readers.map(store.manifest, fresh):
                manifests[manifest.ref.stage, manifest.ref.key] = manifest
        reached |= {(ref.stage, ref.key) for ref in level}
        parents = {parent for ref in level for parent in manifests[ref.stage, ref.key].parents.values()}
        level = {ref for ref in parents if (ref.stage, ref.key) not in reached}
    return reached


def _recorded(ledger: Ledger) -> Iterator[Ref]:
    records: list[Any] = [ledger.inputs(), *ledger.iterations()]
    records += [ledger.held_out(t) for t in range(len(records))]
    for record in records:
        yield from references(record)
