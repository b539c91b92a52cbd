"""Facts of a run that must be equal after any interruption: all but the times."""

from __future__ import annotations

from collections import Counter
from typing import Any

from optune_core.data.schemas import REPLAY, read_table
from optune_core.storage import ArtifactStore, Ledger, Manifest, open_objects
from optune_core.storage.gc import references
from optune_core.storage.lease import read_lease


def run_facts(store_url: str, run: str) -> dict[str, Any]:
    """Return the records of a run without times, and digest, files, metrics and parents of all its artifacts."""
    store = ArtifactStore(open_objects(store_url))
    ledger = Ledger(store.objects, run)
    records = ledger.iterations()
    held_out = [ledger.held_out(t) for t in range(len(records) + 1)]
    assert None not in held_out
    artifacts: dict[str, Any] = {}
    waiting = list(references([records, held_out]))
    while waiting:
        ref = waiting.pop()
        name = f"{ref.stage}/{ref.key}"
        if name not in artifacts:
            manifest = store.manifest(ref)
            artifacts[name] = (ref.digest, manifest.files, manifest.metrics, _parents(manifest))
            waiting += manifest.parents.values()
    return {
        "iterations": [{name: value for name, value in record.items() if name != "timing"} for record in records],
        "held_out": held_out,
        "artifacts": artifacts,
    }


def assert_sound(store_url: str, run: str) -> None:
    """Check that every replay set has every prompt once, every file is as committed, and the lease is released."""
    store = ArtifactStore(open_objects(store_url))
    prompts = []
    for record in Ledger(store.objects, run).iterations():
        folder = store.fetch(record["artifacts"]["replay"])
        ids = read_table(folder / "replay.parquet", REPLAY)["prompt_id"].to_pylist()
        assert max(Counter(ids).values()) == 1
        prompts.append(sorted(ids))
        store.fetch(record["artifacts"]["policy"])
    assert all(each == prompts[0] for each in prompts)
    lease = read_lease(store.objects, run)
    assert lease is not None
    assert (lease.state, lease.holder) == ("finished", None)


def _parents(manifest: Manifest) -> dict[str, str]:
    return {role: ref.digest for role, ref in sorted(manifest.parents.items())}
