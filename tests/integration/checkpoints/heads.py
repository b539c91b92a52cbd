"""Checkpoints of a policy that is never trained, and the head that names them."""

from __future__ import annotations

import json
from pathlib import Path

from optune_core.storage import ArtifactStore, Work
from optune_core.training.recovery import Checkpoints

POLICY = Work("policy", 0, {"of": "a test"})


def written(folder: Path, step: int) -> Path:
    target = folder / f"checkpoint-{step}"
    target.mkdir(parents=True)
    (target / "state").write_text(f"step {step}")
    return target


def head(store: ArtifactStore, policy: Work = POLICY) -> list[int] | None:
    body = store.objects.read(f"checkpoints/{policy.key}/head.json")
    return None if body is None else json.loads(body)["steps"]


def committed(store: ArtifactStore, checkpoints: Checkpoints, steps: range = range(40)) -> list[int]:
    return [step for step in steps if store.find(checkpoints.work(step)) is not None]


def commit(checkpoints: Checkpoints, folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.commit(step, written(folder, step))
    checkpoints.wait()


def accept(folder: Path) -> None:
    """Accept any checkpoint."""
