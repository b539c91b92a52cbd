"""Stage `alpaca-annotations`: a policy's answers beside the reference outputs, annotated by alpaca-eval, in shards."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.schemas import ANNOTATIONS, ANSWERS, write_table
from optune_core.data.shards import RESPONSES_FILE, read_shards, shard_parents
from optune_core.data.sources import source_identity
from optune_core.errors import ConservationError
from optune_core.evaluation.alpaca_eval.annotator import LibraryAnnotator, Usage
from optune_core.evaluation.alpaca_eval.annotator_files import AnnotatorFiles, require_library
from optune_core.evaluation.alpaca_eval.data import read_references
from optune_core.evaluation.alpaca_eval.sections import Annotator, Instructions
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "annotations.parquet"

Row = dict[str, Any]


class Spec(BaseModel):
    annotator: Annotator
    files: AnnotatorFiles
    """The annotator's definition."""
    prompts: Instructions
    """The source of the reference outputs."""
    answered: int
    """Number of prompts that the policy has answered."""
    shard_size: int
    policy: list[Ref]
    """Shards of the policy's responses; of several samples the first is annotated."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work a shard of prompts.

    Raises:
        OptuneError: the library is not installed.
        DataError: the references cannot be read.
    """
    params: Row = {
        "annotator": spec.files.model_dump(mode="json"),
        "base_url": spec.annotator.base_url,
        "attempts": spec.annotator.attempts,
        "alpaca_eval": require_library(),
        "references": spec.prompts.model_dump(mode="json", include={"column", "output"})
        | {"source": source_identity(spec.prompts.source)},
    }
    parents = shard_parents("policy", spec.policy)
    return [
        Work("alpaca-annotations", VERSION, params | {"rows": [rows.start, len(rows)]}, parents)
        for rows in _shards(spec)
    ]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Annotate the shards that are missing; each is committed when its last annotation is there.

    Raises:
        ConservationError: the answers are not to these prompts.
        JudgeError, TransientError: the annotator cannot be asked; committed shards stay.
    """
    missing = [
        (work, rows) for work, rows in zip(works(store, spec), _shards(spec), strict=True) if store.find(work) is None
    ]
    pairs = _paired(store, spec)
    total, done = sum(len(rows) for _, rows in missing), 0
    progress("start annotator", 0, 0)
    with tempfile.TemporaryDirectory(prefix="optune-") as folder:
        annotator = LibraryAnnotator(spec.files, spec.annotator, Path(folder))
        for work, rows in missing:
            progress("annotate", done, total)
            annotator.usage, before = Usage(), time.monotonic()
            shard = [pairs[row] for row in rows]
            preferences = annotator.annotate(
                [
                    {
                        "instruction": pair["instruction"],
                        "output_1": pair["reference_output"],
                        "output_2": pair["policy_output"],
                    }
                    for pair in shard
                ]
            )
            reach("alpaca-annotations.shard")
            annotated = [pair | {"preference": value} for pair, value in zip(shard, preferences, strict=True)]
            _commit(store, work, annotated, annotator, time.monotonic() - before)
            done += len(rows)
            progress("annotate", done, total)


def _commit(store: ArtifactStore, work: Work, rows: list[Row], annotator: LibraryAnnotator, seconds: float) -> None:
    usage = annotator.usage
    malformed = sum(row["preference"] is None for row in rows)
    metrics: Row = {
        "malformed": malformed,
        "requests": usage.requests,
        "tokens": usage.tokens,
        "cost": usage.cost if math.isfinite(usage.cost) else None,
    }
    if malformed == len(rows) and annotator.replies:
        metrics["reply"] = str(annotator.replies[-1])[:500]
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=ANNOTATIONS), ANNOTATIONS, scratch / FILE)
        store.commit(work, scratch, metrics=metrics, timing={"seconds": seconds, "ended_at": time.time()})


def _shards(spec: Spec) -> list[range]:
    every = range(spec.answered)
    return [every[first : first + spec.shard_size] for first in every[:: spec.shard_size]]


def _paired(store: ArtifactStore, spec: Spec) -> list[Row]:
    """Return the policy's answers in the order of the source, each with the reference's; columns of ANNOTATIONS."""
    references = read_references(spec.prompts)
    answers = [
        row for row in read_shards(store, spec.policy, RESPONSES_FILE, ANSWERS).to_pylist() if row["sample"] == 0
    ]
    unknown = [row["prompt"] for row in answers if row["prompt"] not in references]
    if unknown or len({row["prompt"] for row in answers}) != len(answers) or len(answers) != spec.answered:
        raise ConservationError(
            f"{len(answers)} answers to {spec.answered} prompts, {len(unknown)} of them to prompts without a reference"
        )
    pairs = [
        {
            "index": references[row["prompt"]].index,
            "instruction": row["prompt"],
            "reference_output": references[row["prompt"]].output,
            "policy_output": row["response"],
        }
        for row in answers
    ]
    return sorted(pairs, key=lambda pair: pair["index"])


STAGE = Stage("alpaca-annotations", Spec, works, run)
