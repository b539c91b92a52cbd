"""A kind of evaluation in a user's own package: no stage of its own, no judge, one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal

from optune_core.data.schemas import ANSWERS
from optune_core.data.shards import RESPONSES_FILE, read_shards
from optune_core.evaluation.evaluation import Evaluation, Make, Outcome, Row
from optune_core.evaluation.prompts import answers_of, held_out_prompts
from optune_core.evaluation.subject import Subject
from optune_core.storage import ArtifactStore


class MeanLength(Evaluation):
    """Mean length of fresh answers to the held-out prompts."""

    unit: Literal["words", "characters"] = "words"

    def outcomes(self, store: ArtifactStore, subject: Subject, make: Make) -> Iterator[Outcome]:
        prompts = held_out_prompts(store, subject)
        sampling = subject.config.generation.sampling
        for t in subject.iterations:
            answers = answers_of(subject, t, prompts, sampling, self.seed, make)
            texts = read_shards(store, answers, RESPONSES_FILE, ANSWERS)["response"].to_pylist()
            length = fmean(len(text.split() if self.unit == "words" else text) for text in texts)
            yield Outcome(iteration=t, metrics={"length": length}, artifacts={"answers": answers})

    @classmethod
    def columns(cls, record: Row) -> Sequence[str]:
        return ("t", record["config"]["unit"])

    @classmethod
    def cells(cls, record: Row) -> list[str]:
        return [str(record["iteration"]), f"{record['metrics']['length']:.2f}"]
