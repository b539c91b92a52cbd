"""`alpaca_eval`: AlpacaEval 2's length-controlled win rate against reference outputs (the paper's Table 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from optune_core.evaluation.alpaca_eval import annotations as annotation_stage
from optune_core.evaluation.alpaca_eval import win_rate
from optune_core.evaluation.alpaca_eval.annotator_files import describe_annotator, find_annotator
from optune_core.evaluation.alpaca_eval.data import check_calibration, generators, read_references
from optune_core.evaluation.alpaca_eval.sections import Annotator, Instructions
from optune_core.evaluation.endpoint import api_key
from optune_core.evaluation.evaluation import Evaluation, Headline, Make, Outcome, Row
from optune_core.evaluation.prompts import answers_of, draw_prompts
from optune_core.evaluation.subject import Subject
from optune_core.generation.section import Sampling
from optune_core.storage import ArtifactStore
from optune_core.words import number


class AlpacaEval(Evaluation):
    """An annotator of the library alpaca-eval compares each answer with a reference output; the library's regression
    then removes what the difference in length explains."""

    kind: Literal["alpaca_eval"] = "alpaca_eval"
    prompts: Instructions
    """The instructions, with the outputs that a policy's are compared with."""
    calibration: str = "hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv"
    """CSV that the library's length control is fitted with, for the very instructions of `prompts.source`: their
    difficulties, and annotations of a concise and a verbose baseline. A path, or any URL that fsspec reads."""
    generation: Sampling | None = None
    """Default: as the run samples."""
    annotator: Annotator = Field(default_factory=Annotator)
    shard_size: int = Field(default=16, ge=1)
    """Prompts that are annotated and committed together: at most these are asked for again after a kill."""

    label: ClassVar[str] = "AlpacaEval 2"

    def check(self, store: ArtifactStore, subject: Subject) -> None:
        find_annotator(self.annotator.config)
        api_key(self.annotator, "annotator")
        check_calibration(self.calibration, len(read_references(self.prompts)))

    def outcomes(self, store: ArtifactStore, subject: Subject, make: Make) -> Iterator[Outcome]:
        files = find_annotator(self.annotator.config)
        references = read_references(self.prompts)
        sampling = self.generation or subject.config.generation.sampling
        table = draw_prompts(store, subject, self.prompts, self.seed, make)
        for t in subject.iterations:
            spec = annotation_stage.Spec(
                annotator=self.annotator,
                files=files,
                prompts=self.prompts,
                answered=table.rows,
                shard_size=self.shard_size,
                policy=answers_of(subject, t, table, sampling, self.seed, make),
            )
            annotated = make(f"annotate: policy {t}", "alpaca-annotations", spec)
            control = win_rate.Spec(annotations=annotated, calibration=self.calibration, instructions=len(references))
            (summary,) = make(f"win rate: policy {t}", "alpaca-win-rate", control)
            metrics = store.manifest(summary).metrics
            yield Outcome(
                iteration=t,
                metrics=metrics,
                artifacts={"summary": summary, "annotations": annotated},
                facts={
                    "reference": generators(references),
                    "annotator": describe_annotator(files, self.annotator),
                    "prompts": metrics["total"] + metrics["malformed"],
                },
            )

    @classmethod
    def columns(cls, record: Row) -> Sequence[str]:
        return (
            "t",
            "LC win rate",
            "± SE",
            "win rate",
            "± SE",
            "n",
            "malformed",
            "length",
            "reference's",
            "tokens",
            "cost $",
        )

    @classmethod
    def cells(cls, record: Row) -> list[str]:
        metrics = record["metrics"]
        rates = ("lc_win_rate", "lc_standard_error", "win_rate", "standard_error")
        return [
            str(record["iteration"]),
            *[number(metrics[name], 2) for name in rates],
            str(metrics["total"]),
            str(metrics["malformed"]),
            number(metrics["mean_length"], 0),
            number(metrics["mean_reference_length"], 0),
            f"{metrics['tokens']:,.0f}",
            number(metrics["cost"], 2),
        ]

    @classmethod
    def about(cls, record: Row) -> str:
        return f"Against {record['reference']}, {record['prompts']} prompts; annotator: {record['annotator']}"

    @classmethod
    def note(cls, record: Row) -> str:
        return (
            "50 is on par; ± one standard error. LC: as it would be, had both sides' outputs the same length (mean "
            "characters of the policy's outputs and of the reference's). Malformed annotations are in no win rate."
        )

    @classmethod
    def headline(cls, record: Row) -> Headline:
        metrics = record["metrics"]
        return Headline(
            f"LC win rate, {record['name']}",
            record["iteration"],
            number(metrics["lc_win_rate"], 2),
            f"± {number(metrics['lc_standard_error'], 2)}",
            f"raw {number(metrics['win_rate'], 2)}, against {record['reference']}, annotator {record['annotator']}; "
            "50 is on par",
        )
