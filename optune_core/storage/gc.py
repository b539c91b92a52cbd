"""Garbage: objects that no run needs and nobody is writing.

These are kept:
- artifacts that the records of a run or of a human study refer to, and the artifacts that those were made from;
- artifacts made from the latest committed state of a run that is not at its target: its work in progress;
- all committed artifacts while a run is in preparation, since no record names yet which ones it uses;
- checkpoints of a policy that is not committed, while any run is not at its target;
- objects younger than the grace period by the store's own clock, which an attempt may still be writing.
Of an artifact the manifest is deleted before the data, so that no reader finds a part of it. The exception has to be
requested: float32 master weights of policies from which nothing is trained. They are two thirds of a policy's bytes
and are made again when they are needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from optune_core.errors import CorruptArtifact
from optune_core.storage.artifacts import ArtifactStore
from optune_core.storage.lease import LeaseRecord, read_lease
from optune_core.storage.ledger import Ledger, list_runs
from optune_core.storage.manifest import Manifest, Ref
from optune_core.storage.objects import Entry
from optune_core.storage.studies import StudyLedger, list_studies
from optune_core.storage.sweeps import all_cells

_READERS = 16

Artifact = tuple[str, str]
"""Stage and key."""


@dataclass
class Garbage:
    """Objects that may be deleted, manifests before data."""

    commits: list[Entry] = field(default_factory=list)
    data: list[Entry] = field(default_factory=list)
    kept_bytes: int = 0
    waiting_cells: list[str] = field(default_factory=list)
    """Unfinished cells of sweeps, because of which all master weights are kept."""

    @property
    def bytes(self) -> int:
        """Bytes that deleting frees."""
        return sum(entry.size for entry in (*self.commits, *self.data))


def find_garbage(store: ArtifactStore, grace_seconds: float, *, masters: bool = False) -> Garbage:
    """List the store and return the objects that may be deleted. Deletes nothing.

    Args:
        store: the store.
        grace_seconds: age in seconds below which everything is kept.
        masters: include the master weights of policies, except those of each run's latest policy, from which the run
            may be continued, and those from which an unfinished run or cell of a sweep could train. A policy without
            its master weights can still be evaluated; to train from it, it is trained again first.

    Raises:
        StoreError, TransientError: the store refused, or could not be reached.
    """
    young = store.objects.now() - grace_seconds
    groups: defaultdict[Artifact, list[Entry]] = defaultdict(list)
    for entry in store.objects.walk("artifacts"):
        _, stage, key, *_ = entry.path.split("/")
        groups[stage, key].append(entry)
    manifests = dict(_manifests(store, groups))
    leases = {run: read_lease(store.objects, run) for run in list_runs(store.objects)}
    unfinished = {run for run, lease in leases.items() if lease is None or lease.state != "finished"}
    needed, trained_from = _needed(store, manifests, leases, unfinished)
    garbage = Garbage()
    if masters:
        garbage.waiting_cells = sorted(all_cells(store.objects) - (leases.keys() - unfinished))
        masters = not garbage.waiting_cells  # a cell that has not begun may share any policy

    def sort(entry: Entry, needed: bool) -> None:
        if needed or entry.modified >= young:
            garbage.kept_bytes += entry.size
        elif _is_manifest(entry):
            garbage.commits.append(entry)
        else:
            garbage.data.append(entry)

    for artifact, objects in groups.items():
        manifest = manifests.get(artifact)
        fresh = any(_is_manifest(entry) and entry.modified >= young for entry in objects)
        for entry in objects:
            name = entry.path.split("/")[3]
            committed = manifest is not None and (name == "manifest.json" or name.startswith(manifest.attempt))
            idle = masters and _is_master(entry) and artifact not in trained_from
            sort(entry, committed and (fresh or artifact in needed) and not idle)
    for entry in store.objects.walk("checkpoints"):
        sort(entry, bool(unfinished) and ("policy", entry.path.split("/")[1]) not in manifests)
    for place in ("scratch", "probe"):
        for entry in store.objects.walk(place):
            sort(entry, False)
    for place in ("runs", "studies", "sweeps"):
        for entry in store.objects.walk(place):
            sort(entry, not entry.path.rsplit("/", 1)[-1].startswith("."))  # temporary files of a killed writer
    return garbage


def delete_garbage(store: ArtifactStore, garbage: Garbage) -> None:
    """Delete the objects that `find_garbage` found. May be interrupted and repeated."""
    for entry in (*garbage.commits, *garbage.data):
        store.objects.delete(entry.path)


def _manifests(store: ArtifactStore, groups: dict[Artifact, list[Entry]]) -> Iterator[tuple[Artifact, Manifest]]:
    def read(artifact: Artifact) -> Manifest | None:
        try:
            return store.committed(*artifact)
        except CorruptArtifact:
            return None

    artifacts = [artifact for artifact, objects in groups.items() if any(map(_is_manifest, objects))]
    with ThreadPoolExecutor(_READERS) as readers:
        for artifact, manifest in zip(artifacts, readers.map(read, artifacts), strict=True):
            if manifest is not None:
                yield artifact, manifest


def _needed(
    store: ArtifactStore,
    manifests: dict[Artifact, Manifest],
    leases: Mapping[str, LeaseRecord | None],
    unfinished: set[str],
) -> tuple[set[Artifact], set[Artifact]]:
    """Return the artifacts to keep, and the policies from which a run may be trained."""
    recorded = _artifacts([StudyLedger(store.objects, study).record() for study in list_studies(store.objects)])
    last_states: set[Artifact] = set()
    last_policies: set[Artifact] = set()
    for run, lease in leases.items():
        ledger = Ledger(store.objects, run)
        inputs = _artifacts(ledger.inputs())
        if not inputs and lease is not None and lease.is_open:  # in preparation
            return set(manifests), set(manifests)
        records = ledger.iterations()
        held_out = [ledger.held_out(t) for t in range(len(records) + 1)]
        recorded |= inputs | _artifacts([records, held_out, ledger.evaluations()])
        if records:
            last_policies |= _artifacts(records[-1]["artifacts"].get("policy"))
        if run in unfinished:
            last_states |= _artifacts(records[-1]["artifacts"]) if records else inputs
    parents: defaultdict[Artifact, set[Artifact]] = defaultdict(set)
    made_from: defaultdict[str, set[Artifact]] = defaultdict(set)
    for artifact, manifest in manifests.items():
        for parent in manifest.parents.values():
            parents[artifact].add((parent.stage, parent.key))
            made_from[parent.digest].add(artifact)  # by digest: any parent with the same content leads to it
    children = {artifact: made_from[manifest.ref.digest] for artifact, manifest in manifests.items()}
    in_progress = _closure(last_states, children)
    if unfinished:
        in_progress |= {
            artifact
            for artifact, manifest in manifests.items()
            if artifact[0] == "checkpoint" and ("policy", manifest.params["policy"]) not in manifests
        }
    return _closure(recorded | in_progress, parents), last_policies | in_progress


def _is_manifest(entry: Entry) -> bool:
    # An artifact's own file may have the same name, one folder deeper.
    return entry.path.count("/") == 3 and entry.path.endswith("/manifest.json")


def _is_master(entry: Entry) -> bool:
    """Return whether the object holds float32 master weights of a policy: artifacts/policy/KEY/ATTEMPT/master/…"""
    parts = entry.path.split("/")
    return parts[1] == "policy" and parts[4:5] == ["master"]


def _closure(start: set[Artifact], edges: Mapping[Artifact, set[Artifact]]) -> set[Artifact]:
    reached, to_visit = set(start), list(start)
    while to_visit:
        for neighbour in edges.get(to_visit.pop(), set()) - reached:
            reached.add(neighbour)
            to_visit.append(neighbour)
    return reached


def _artifacts(record: object) -> set[Artifact]:
    return {(ref.stage, ref.key) for ref in references(record)}


def references(value: object) -> Iterator[Ref]:
    """Find all references in a record, at any depth."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)
