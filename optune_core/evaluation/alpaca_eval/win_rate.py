"""Stage `alpaca-win-rate`: alpaca-eval's length-controlled win rate of annotations."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from optune_core.data.schemas import ANNOTATIONS
from optune_core.data.shards import read_shards, shard_parents
from optune_core.errors import JudgeError
from optune_core.evaluation.alpaca_eval.annotations import FILE as ANNOTATIONS_FILE
from optune_core.evaluation.alpaca_eval.annotator_files import require_library
from optune_core.evaluation.alpaca_eval.data import calibration_digest, check_calibration
from optune_core.evaluation.alpaca_eval.length_control import length_controlled
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "win_rate.json"


class Spec(BaseModel):
    annotations: list[Ref]
    """Shards of annotated pairs."""
    calibration: str
    """Path or URL."""
    instructions: int
    """Number of instructions that the calibration is for; some of them, or all, are annotated."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work.

    Raises:
        OptuneError: the library is not installed.
        DataError: the calibration cannot be read.
    """
    parents = shard_parents("annotations", spec.annotations)
    params = {"calibration": calibration_digest(spec.calibration), "alpaca_eval": require_library()}
    return [Work("alpaca-win-rate", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Fit the length control, and commit the win rates.

    Raises:
        JudgeError: no annotation can be read, or none can be fitted.
    """
    (work,) = works(store, spec)
    shards = [store.manifest(shard).metrics for shard in spec.annotations]
    rows = read_shards(store, spec.annotations, ANNOTATIONS_FILE, ANNOTATIONS).to_pylist()
    malformed = sum(row["preference"] is None for row in rows)
    if malformed == len(rows):
        raise JudgeError(
            f"all {malformed} annotations are malformed, such as: {shards[0].get('reply')}. Give an annotator whose "
            "endpoint answers as its parser expects (weighted_alpaca_eval_gpt4_turbo needs log-probabilities)"
        )
    progress("fit length control", 0, 0)
    metrics: dict[str, Any] = {"malformed": malformed}
    with store.scratch() as scratch:
        file = scratch / "calibration.csv"
        file.write_bytes(check_calibration(spec.calibration, spec.instructions))
        metrics |= length_controlled(rows, file)
        file.unlink()
        metrics |= {name: sum(shard[name] for shard in shards) for name in ("requests", "tokens")}
        costs = [shard["cost"] for shard in shards]
        metrics["cost"] = None if None in costs else sum(costs)
        (scratch / FILE).write_text(json.dumps(metrics, sort_keys=True, indent=2) + "\n")
        store.commit(work, scratch, metrics=metrics)


STAGE = Stage("alpaca-win-rate", Spec, works, run)
