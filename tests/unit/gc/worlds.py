"""A store that is filled by hand, aged and collected."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from optune_core.errors import CorruptArtifact
from optune_core.storage import ArtifactStore, Ledger, Manifest, Work
from optune_core.storage.gc import delete_garbage, find_garbage
from optune_core.storage.lease import LeaseRecord, State
from optune_core.storage.local import LocalObjects
from tests.sections import AnyConfig

HOUR = 3600.0


class World:
    """A store that is filled by hand. Before a collection everything in it is made old, except what is in `young`."""

    def __init__(self, root: Path) -> None:
        self.objects = LocalObjects(root)
        self.store = ArtifactStore(self.objects, cache=root.with_name("cache"))
        self.young: set[str] = set()

    def policy(self, name: str, parents: Iterable[Manifest] = ()) -> Manifest:
        """Commit an artifact with the folders of a trained policy."""
        work = Work("policy", 1, {"name": name}, {f"parent-{i}": p.ref for i, p in enumerate(parents)})
        with self.store.scratch() as scratch:
            for folder in ("master", "model"):
                (scratch / folder).mkdir()
                (scratch / folder / "model.safetensors").write_text(f"{folder} of {name}")
            return self.store.commit(work, scratch)

    def make(self, name: str, parents: Iterable[Manifest] = (), *, stage: str = "demo", **params: object) -> Manifest:
        work = Work(stage, 1, {"name": name, **params}, {f"parent-{i}": p.ref for i, p in enumerate(parents)})
        with self.store.scratch() as scratch:
            (scratch / "data.bin").write_text(f"data of {name}")
            (scratch / "sub").mkdir()
            (scratch / "sub" / "more.bin").write_text("more")
            return self.store.commit(work, scratch)

    def file(self, path: str, body: str = "x", *, young: bool = False) -> str:
        self.objects.create(path, body.encode())
        if young:
            self.young.add(path)
        return path

    def run(
        self,
        name: str,
        state: State | None,
        *,
        inputs: dict[str, Manifest] | None,
        records: Iterable[dict[str, Manifest]] = (),
        evaluations: dict[int, Manifest] | None = None,
    ) -> None:
        """Record a run; without `inputs` it is in preparation, without `state` it has no lease."""
        ledger = Ledger(self.objects, name)
        if inputs is not None:
            ledger.open(AnyConfig(name=name), {role: made.ref for role, made in inputs.items()})
        for t, artifacts in enumerate(records):
            refs = {role: made.ref for role, made in artifacts.items()}
            ledger.commit_iteration(t, {"iteration": t, "artifacts": refs})
        for t, made in (evaluations or {}).items():
            ledger.commit_held_out(t, {"artifacts": {"scores": [made.ref]}})
        if state is not None:
            lease = LeaseRecord(state, None, "", None, 1, 1, 1, "")
            self.objects.create(f"runs/{name}/lease.json", lease.to_bytes())

    def files(self) -> set[str]:
        """Return every file of the store except its lock."""
        return {entry.path for entry in self.objects.walk("") if entry.path != ".lock"}

    def of(self, *manifests: Manifest) -> set[str]:
        """Return the files of artifacts, manifests included."""
        found = set()
        for manifest in manifests:
            base = f"artifacts/{manifest.ref.stage}/{manifest.ref.key}"
            found |= {f"{base}/manifest.json", *(f"{base}/{manifest.attempt}/{path}" for path in manifest.files)}
        return found

    def age(self) -> None:
        long_ago = time.time() - 2 * HOUR
        for path in self.files() - self.young:
            os.utime(self.objects.root / path, (long_ago, long_ago))

    def collect(self, *, masters: bool = False) -> set[str]:
        """Collect garbage older than an hour. Returns the deleted files."""
        self.age()
        before = self.files()
        delete_garbage(self.store, find_garbage(self.store, HOUR, masters=masters))
        return before - self.files()


def damage(world: World, manifest: Manifest) -> str:
    """Damage an artifact and have a reader find it. Returns the mark's path."""
    base = f"artifacts/{manifest.ref.stage}/{manifest.ref.key}"
    file = world.objects.root / base / manifest.attempt / "data.bin"
    file.unlink()
    file.write_text("torn")
    with pytest.raises(CorruptArtifact):
        ArtifactStore(world.objects).fetch(manifest.ref)
    return f"{base}/{manifest.attempt}.damaged"
