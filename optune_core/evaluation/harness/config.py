"""`harness`: tasks of lm-evaluation-harness on a policy (the paper's Table 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optune_core.evaluation.evaluation import Evaluation, Make, Outcome, Row
from optune_core.evaluation.harness import report
from optune_core.evaluation.harness.library import harness_version, include_identity
from optune_core.evaluation.harness.results import average, task_results
from optune_core.evaluation.harness.section import HarnessTask
from optune_core.evaluation.harness.tasks import Spec
from optune_core.evaluation.subject import Subject
from optune_core.generation.engine import Engine
from optune_core.generation.registry import ENGINES
from optune_core.generation.vllm import VllmEngine
from optune_core.storage import ArtifactStore, Ref


class Harness(Evaluation):
    """The harness asks its questions, and measures the answers."""

    kind: Literal["harness"] = "harness"
    tasks: list[HarnessTask] = Field(min_length=1)
    """Columns of the table, in this order. Each is committed when it is done."""
    include: str | None = None
    """Folder of task definitions in the harness's YAML, on top of its own. Data files with a relative path are looked
    for here. Python code that they name is run: take them only from people whose scripts you would run. The content of
    the folder is part of each result's key; what lies outside of it is not."""
    engine: Annotated[Engine, ENGINES] = Field(default_factory=VllmEngine)
    """`vllm` or `transformers`, as the harness's models `vllm` and `hf`. Several replicas share the tasks. With
    `repeatable` no task finds the prefix cache of another."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest question and answer together, in tokens; longer ones lose their beginning. Default: the model's own."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first questions of each task, and of each task in a group: to try something out."""
    chat_template: bool = False
    """True: questions are put in the policy's chat template."""
    seed: int = Field(default=1234, ge=0)
    """Draws the examples before a question, where a task does not fix them. 1234 is the harness's own default."""

    label: ClassVar[str] = "Benchmark"

    def identity(self) -> dict[str, Any]:
        """Return what determines the results: the harness's version and the tasks' definitions, too.

        Raises:
            OptuneError: the harness is not installed.
            DataError: there is no folder `include`.
        """
        return super().identity() | {"harness": harness_version(), "include": include_identity(self.include)}

    def spec(self, policy: Ref) -> Spec:
        """Return the spec of all tasks on a policy."""
        return Spec(
            policy=policy,
            tasks=self.tasks,
            include=self.include,
            engine=self.engine,
            max_length=self.max_length,
            limit=self.limit,
            chat_template=self.chat_template,
            seed=self.seed,
        )

    def outcomes(self, store: ArtifactStore, subject: Subject, make: Make) -> Iterator[Outcome]:
        for t in subject.iterations:
            made = make(f"benchmark: policy {t}", "benchmark", self.spec(subject.policies[t]))
            results = task_results(self.tasks, [store.manifest(ref).metrics for ref in made])
            yield Outcome(
                iteration=t, metrics={"tasks": results, "average": average(results)}, artifacts={"tasks": made}
            )

    @classmethod
    def columns(cls, record: Row) -> Sequence[str]:
        return report.columns(record)

    @classmethod
    def cells(cls, record: Row) -> list[str]:
        return report.cells(record)

    @classmethod
    def about(cls, record: Row) -> str:
        return report.about(record)

    @classmethod
    def note(cls, record: Row) -> str:
        return "Per cent ± standard error, where a metric is a share."
