"""The records of evaluations in a run's ledger: begun, written and shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from optune_core.errors import ConfigDrift
from optune_core.evaluation.evaluation import Evaluation, Headline, Outcome, Row, Table
from optune_core.evaluation.registry import EVALUATIONS
from optune_core.evaluation.subject import Subject, asked_iterations, policies, run_config
from optune_core.storage import ArtifactStore, Ledger
from optune_core.storage.ledger import differences


def open_subject(store: ArtifactStore, config: Evaluation, run: str, iteration: int | None, *, every: bool) -> Subject:
    """Find the policies that are asked for, and refuse what cannot be evaluated before work is spent.

    Args:
        iteration: t of the policy π_t; None: the last.
        every: all policies of the run, but for the baseline itself.

    Raises:
        ConfigDrift: as `check_drift`.
        OptuneError: there is no such run or policy, or the kind's own check fails.
    """
    ledger = Ledger(store.objects, run)
    settings, known = run_config(ledger), policies(ledger)
    asked = asked_iterations(ledger, config.baseline_iteration, len(known), iteration, every=every)
    check_drift(ledger, config)
    subject = Subject(run=run, config=settings, policies=known, iterations=asked)
    config.check(store, subject)
    return subject


def check_drift(ledger: Ledger, config: Evaluation) -> None:
    """Refuse to go on under a name whose records, of whichever policy, were made with another configuration.

    Raises:
        ConfigDrift: they were; the message lists what differs.
    """
    identity = config.identity()
    for record in ledger.evaluations():
        if record["name"] == config.name and (drift := differences(record["config"], identity)):
            lines = "\n".join(f"  - {line}" for line in drift)
            raise ConfigDrift(
                f"evaluation {config.name!r} of policy {record['iteration']} of run {ledger.run!r} was made with "
                f"another configuration:\n{lines}\n"
                "Undo this, or give the evaluation another name: what is unchanged is reused."
            )


def record_of(config: Evaluation, subject: Subject, outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as the ledger records it, tied to the policy's digest."""
    found: Row = outcome.model_dump(mode="json")
    facts: Row = found["facts"]
    return facts | {
        "kind": config.kind,
        "name": config.name,
        "iteration": outcome.iteration,
        "policy": subject.policies[outcome.iteration],
        "metrics": found["metrics"],
        "artifacts": found["artifacts"],
        "config": config.identity(),
    }


def tables(records: Sequence[Row]) -> list[Table]:
    """Return a table for each evaluation, in the order of their names."""
    ordered = sorted(records, key=lambda record: (record["name"], record["iteration"]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda record: record["name"])]
    return [_kind(group[0]).table(group) for group in groups]


def headlines(records: Sequence[Row]) -> list[Headline]:
    """Return the headline of each evaluation's last policy, of the kinds that have one."""
    last = {record["name"]: record for record in sorted(records, key=lambda record: record["iteration"])}
    found = [_kind(record).headline(record) for _, record in sorted(last.items())]
    return [headline for headline in found if headline is not None]


def markdown(store: ArtifactStore, run: str, record: Row) -> str:
    """Return one policy's record as a page for Prefect's UI."""
    kind = _kind(record)
    table = kind.table([record])
    lines = [
        f"# {table.title}, policy {record['iteration']} of {run}",
        *([f"**{table.about}**", ""] if table.about else []),
        f"| {' | '.join(column.replace(chr(10), ' ') for column in table.columns)} |",
        "|---" * len(table.columns) + "|",
        *[f"| {' | '.join(cells)} |" for cells in table.rows],
        "",
        table.note,
        *kind.examples(store, record),
    ]
    return "\n".join(lines)


def _kind(record: Row) -> type[Evaluation]:
    return EVALUATIONS.find(record["kind"])
