"""Base of all kinds of evaluation: a section of the configuration that judges policies and shows its findings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, Field

from optune_core.evaluation.subject import Subject
from optune_core.parts.names import Name, is_path
from optune_core.parts.own_code import source_digest
from optune_core.parts.section import Section
from optune_core.storage import ArtifactStore, Ref

Row = dict[str, Any]


class Make(Protocol):
    def __call__(self, title: str, stage: str, spec: BaseModel) -> list[Ref]:
        """Find the artifacts of a stage, or make them.

        Args:
            title: names the step for people: `answer: policy 1`.
            stage: as `optune_core.stages.registry` names it.
            spec: an instance of the stage's `Spec`.
        """
        ...


class Outcome(BaseModel):
    """Findings of an evaluation about one policy."""

    iteration: int
    """t of π_t."""
    metrics: Row
    """The numbers."""
    artifacts: dict[str, Ref | list[Ref] | None]
    """The artifacts that hold them, by their role: garbage collection keeps these."""
    facts: Row = Field(default_factory=dict)
    """Further fields of the record, as JSON, that a reader of the numbers needs, such as the judge."""


@dataclass(frozen=True)
class Headline:
    """The number of a record that a reader wants first."""

    label: str
    iteration: int
    value: str
    interval: str
    detail: str


@dataclass(frozen=True)
class Table:
    """The records of one evaluation of a run, a row a policy."""

    title: str
    about: str
    """Against whom, on what, judged by whom."""
    columns: Sequence[str]
    """Their first is `t`."""
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    """Explanation of the numbers, for readers."""


class Evaluation(Section):
    """Base of all kinds of evaluation. All other code asks it, and knows no kind by name.

    A kind defines `outcomes`, `columns` and `cells`; all other members have a default. Methods that show records are
    class methods, since a record is read without the configuration that made it.
    """

    kind: str
    name: Name
    """Names the evaluation in the run's records: one name, one configuration."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw of prompts, of the sampling of responses and of everything else that is random."""

    label: ClassVar[str] = "Evaluation"
    """The kind for people."""

    def identity(self) -> dict[str, Any]:
        """Return what determines the results; for a class of a user's own package with the digest of its source."""
        fields = super().identity()
        if is_path(self.kind):
            fields["source"] = source_digest(self.kind, "kind of evaluation")
        return fields

    @property
    def baseline_iteration(self) -> int | None:
        """t of the policy of the run that the others are compared with; None: there is none."""
        return None

    def check(self, store: ArtifactStore, subject: Subject) -> None:
        """Find what is wrong before work is spent.

        Raises:
            OptuneError: the policies cannot be evaluated as it is configured.
        """

    @abstractmethod
    def outcomes(self, store: ArtifactStore, subject: Subject, make: Make) -> Iterator[Outcome]:
        """Evaluate the policies: yield an outcome for each of `subject.iterations`, in this order.

        Args:
            make: runs a stage.
        """

    @classmethod
    @abstractmethod
    def columns(cls, record: Row) -> Sequence[str]:
        """Return the heads of the table's columns, `t` being the first."""

    @classmethod
    @abstractmethod
    def cells(cls, record: Row) -> list[str]:
        """Return a record as a row of the table."""

    @classmethod
    def about(cls, record: Row) -> str:
        """Return against whom, on what and by whom the policy was judged."""
        return ""

    @classmethod
    def note(cls, record: Row) -> str:
        """Return how to read the numbers."""
        return ""

    @classmethod
    def headline(cls, record: Row) -> Headline | None:
        """Return the number for the head of a run's page; None: there is none."""
        return None

    @classmethod
    def examples(cls, store: ArtifactStore, record: Row) -> list[str]:
        """Return lines of Markdown below the table of one record, such as judged responses."""
        return []

    @classmethod
    def table(cls, records: Sequence[Row]) -> Table:
        """Return the records of one name as a table."""
        first = records[0]
        return Table(
            title=f"{cls.label}: {first['name']}",
            about=cls.about(first),
            columns=cls.columns(first),
            rows=[cls.cells(record) for record in records],
            note=cls.note(first),
        )
