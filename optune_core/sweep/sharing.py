"""What the cells of a sweep saved by sharing artifacts."""

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
    """Seconds of work, as noted when each artifact was made; what several engines did side by side adds up."""

    made: float
    """Of the artifacts of all cells, each counted once."""
    apart: float
    """Of the artifacts of all cells, counted for every cell: what they would have taken without sharing."""
    artifacts: int
    shared: int
    """Artifacts of more than one cell."""

    @property
    def saved(self) -> float:
        return self.apart - self.made


def sharing(store: ArtifactStore, runs: Sequence[str]) -> Sharing:
    """Add up the work in what these runs have committed, and in all that it was made from.

    Raises:
        StoreError: a run refers to an artifact that is gone.
    """
    manifests: dict[Artifact, Manifest] = {}
    owners = {run: _artifacts(store, Ledger(store.objects, run), manifests) for run in runs}
    counts = {artifact: sum(artifact in owned for owned in owners.values()) for artifact in manifests}
    seconds = {artifact: seconds_of_work(manifest) for artifact, manifest in manifests.items()}
    return Sharing(
        made=sum(seconds.values()),
        apart=sum(seconds[artifact] * count for artifact, count in counts.items()),
        artifacts=len(manifests),
        shared=sum(count > 1 for count in counts.values()),
    )


def seconds_of_work(manifest: Manifest) -> float:
    """What the making of an artifact took: all its timings but the time of day."""
    return sum(seconds for name, seconds in manifest.timing.items() if name != "ended_at")


def _artifacts(store: ArtifactStore, ledger: Ledger, manifests: dict[Artifact, Manifest]) -> set[Artifact]:
    """All that a run's records refer to, and all that this was made from; their manifests are read once."""
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
