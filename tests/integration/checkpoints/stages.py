"""The training stage on twelve pairs, run here or in a process of its own, and interrupted at its failpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data.schemas import REPLAY, write_table
from optune_core.stages import policy as stage
from optune_core.storage import ArtifactStore, Manifest, Work
from optune_core.training import callbacks, reference
from optune_core.training.recovery import Checkpoints
from optune_core.training.spec import Training
from tests.integration.training.trainings import dataset
from tests.tiny import WDPO

ROOT = Path(__file__).parents[3]
PAIRS = 12


def replay_table() -> pa.Table:
    rows = dataset(PAIRS)
    return pa.table(
        {
            "prompt_id": [f"p{number:02d}" for number in range(PAIRS)],
            "prompt": ["a question"] * PAIRS,
            "messages": [[{"role": "user", "content": "a question"}]] * PAIRS,
            "prompt_token_ids": [row["prompt_ids"] for row in rows],
            "chosen": ["yes"] * PAIRS,
            "chosen_token_ids": [row["chosen_ids"] for row in rows],
            "chosen_reward": [row["chosen_rewards"] for row in rows],
            "rejected": ["no"] * PAIRS,
            "rejected_token_ids": [row["rejected_ids"] for row in rows],
            "rejected_reward": [row["rejected_rewards"] for row in rows],
            "chosen_policy_logps": pa.nulls(PAIRS, pa.float64()),
            "rejected_policy_logps": pa.nulls(PAIRS, pa.float64()),
            "generated_at": [0] * PAIRS,
            "sampled_from": [0] * PAIRS,
            "status": ["regenerated"] * PAIRS,
            "reason": [None] * PAIRS,
            "responses_scored": [2] * PAIRS,
            "reward_mean": [(row["chosen_rewards"] + row["rejected_rewards"]) / 2 for row in rows],
            "reward_variance": [((row["chosen_rewards"] - row["rejected_rewards"]) / 2) ** 2 for row in rows],
            "regenerations": [0] * PAIRS,
            "gain_mean": pa.nulls(PAIRS, pa.float64()),
        },
        schema=REPLAY,
    )


def prepare(store: ArtifactStore, tiny: Path, **training: Any) -> stage.Spec:
    with store.scratch() as folder:
        shutil.copytree(tiny / "policy", folder / "model")
        policy = store.commit(Work("model", 0, {}), folder).ref
    with store.scratch() as folder:
        write_table(replay_table(), REPLAY, folder / "replay.parquet")
        replay = store.commit(Work("replay", 0, {}), folder).ref
    options = {"loss": WDPO, "batch_size": 4, "micro_batch_tokens": 1, "precision": "float32"}
    options |= {"learning_rate": 1e-3, "epochs": 2, "checkpoint_every": "0s"} | training
    return stage.Spec(training=Training(**options), seed=1, iteration=0, policy=policy, initial=policy, replay=replay)


def run(store: ArtifactStore, spec: stage.Spec) -> Manifest:
    stage.run(store, spec, lambda what, done, total: None)
    found = store.find(stage.works(store, spec)[0])
    assert found is not None
    return found


def checkpoints_of(store: ArtifactStore, spec: stage.Spec) -> Checkpoints:
    return Checkpoints(store, stage.works(store, spec)[0])


def at_point(monkeypatch: pytest.MonkeyPatch, point: str, pass_number: int, action: Any) -> list[str]:
    """Run an action when a failpoint of training is passed for the n-th time. Returns all that are passed."""
    from optune_core.training import recovery, trainer

    passed: list[str] = []

    def reach(name: str) -> None:
        passed.append(name)
        if name == point and passed.count(point) == pass_number:
            action()

    for module in (callbacks, recovery, trainer, reference):
        monkeypatch.setattr(module, "reach", reach)
    return passed


def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def child(spec: stage.Spec, store: ArtifactStore, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, *launcher, "-m", "optune_core.stages.worker", "policy"]
    return subprocess.Popen(
        [*command, str(folder / "spec.json"), store.objects.url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def messages(lines: Any) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines)
