"""The uninterrupted run that all interrupted ones are compared with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optune_core.storage import ArtifactStore, Manifest, open_objects
from tests.faults.driver import Runner
from tests.faults.oracle import assert_sound, run_facts
from tests.tiny import write_config

SMALL: dict[str, Any] = {
    "prompts": {"sample": 8, "held_out": 2},
    "generation": {"shard_size": 4, "max_tokens": 6},
    "training": {"checkpoint_every": "0s"},
    "held_out": {"gold": None},
}


@dataclass(frozen=True)
class Uninterrupted:
    """A run `kills` of two iterations without any interruption."""

    config: Path
    facts: dict[str, Any]
    points: list[str]
    """All distinct points in the order in which they were first passed."""
    steps: int
    """Optimizer steps."""
    seconds: dict[str, float]
    """Stage seconds of one unit of work, by its point."""


def run_uninterrupted(tiny: Path, folder: Path, api: dict[str, str]) -> Uninterrupted:
    """Make the uninterrupted run."""
    config = write_config(tiny, name="kills", **SMALL)
    runner = Runner(config, str(folder / "store"), folder / "failpoints", api)
    runner.finish(most_starts=1)
    assert_sound(runner.store, "kills")
    units = Counter(runner.passed())
    return Uninterrupted(
        config,
        run_facts(runner.store, "kills"),
        points=list(dict.fromkeys(runner.passed())),
        steps=units["policy.step"],
        seconds=unit_seconds(runner.store, units),
    )


def manifests(store_url: str, stage: str) -> list[Manifest]:
    """Return all committed artifacts of a stage."""
    store = ArtifactStore(open_objects(store_url))
    found = [store.committed(stage, key) for key in store.keys(stage)]
    return [manifest for manifest in found if manifest is not None]


def unit_seconds(store_url: str, units: Counter[str]) -> dict[str, float]:
    """Return the stage seconds of one unit of work by its point, from the manifests of a complete run."""
    stages = {"responses.response": "responses", "scores.scored": "scores", "policy.step": "policy"}
    return {
        point: sum(m.timing["seconds"] for m in manifests(store_url, stage)) / max(1, units[point])
        for point, stage in stages.items()
    }
