"""Stage `win-score`: the summary of judged comparisons (Eq. 7)."""

from __future__ import annotations

import json

from pydantic import BaseModel

from optune_core.data.schemas import COMPARISONS
from optune_core.data.shards import read_shards, shard_parents
from optune_core.evaluation.win_score.comparisons import FILE as COMPARISONS_FILE
from optune_core.evaluation.win_score.summary import summarise_comparisons
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "win_score.json"


class Spec(BaseModel):
    comparisons: list[Ref]
    """Shards of judged pairs."""
    prices: tuple[float, float] | None
    """Price of a million prompt tokens and of a million completion tokens."""
    judge: str
    """The judge's description: every output says where the judge is a stand-in."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work."""
    return [
        Work(
            "win-score",
            VERSION,
            {"prices": spec.prices, "judge": spec.judge},
            shard_parents("comparisons", spec.comparisons),
        )
    ]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Summarise the comparisons.

    Raises:
        JudgeError: no judgement can be read.
    """
    (work,) = works(store, spec)
    table = read_shards(store, spec.comparisons, COMPARISONS_FILE, COMPARISONS)
    metrics = {"judge": spec.judge} | summarise_comparisons(table, spec.prices)
    with store.scratch() as scratch:
        (scratch / FILE).write_text(json.dumps(metrics, sort_keys=True, indent=2) + "\n")
        store.commit(work, scratch, metrics=metrics)


STAGE = Stage("win-score", Spec, works, run, in_process=True)
