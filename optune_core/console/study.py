"""Output of `optune study`: a created study, and a study's results (Table 4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from optune_core.console.tables import plain_table, wide_console
from optune_core.storage import ArtifactStore, open_objects
from optune_core.study.create import open_study
from optune_core.study.results import OUTCOMES, current_ratings, summarise
from optune_core.study.sessions import Participant

_CONSOLE = wide_console()


def print_created(record: dict[str, Any]) -> None:
    """Print what is compared, how many prompts each comparison asks about, and why others are left out."""
    for name, identity in record["sources"].items():
        print(f"{name}: policy {identity['iteration']} of the run" if identity["type"] == "run" else f"{name}: a file")
    for comparison in record["comparisons"]:
        outcomes = dict(comparison["prompts"])
        asked = outcomes.pop("asked")
        left_out = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in outcomes.items())
        print(
            f"{comparison['policy']} against {comparison['baseline']}: {asked} prompts are asked about, "
            f"at most {record['prompts']} were wanted; left out: {left_out or 'none'}"
        )
    print(f"study {record['study']}: optune study serve {record['study']}")


def study_results(store_url: str, study: str, ratings_file: str | None = None) -> dict[str, Any]:
    """Return the study's summary; write its ratings to a JSONL file if one is named.

    Raises:
        StudyError: there is no such study.
    """
    ledger, record, pairs = open_study(ArtifactStore(open_objects(store_url)), study)
    participants = [Participant.from_record(each) for each in ledger.participants.read()]
    ratings = {each.id: ledger.ratings(each.id).read() for each in participants}
    rows = current_ratings(pairs, participants, ratings)
    if ratings_file is not None:
        lines = (json.dumps({"study": study} | row, ensure_ascii=False) + "\n" for row in rows)
        Path(ratings_file).write_text("".join(lines), encoding="utf-8")
    assigned = {each.name: len(each.pairs) for each in participants}
    return {"study": study, **summarise(record["comparisons"], rows, assigned)}


def print_results(summary: dict[str, Any]) -> None:
    """Print the tables, and warnings about participants who always gave the same answer."""
    _CONSOLE.print(_outcome_table(summary))
    _CONSOLE.print(_participant_table(summary))
    for comparison in summary["comparisons"]:
        if identical := comparison["prompts"].get("identical", 0):
            print(
                f"{comparison['policy']} against {comparison['baseline']}: {identical} prompts with identical "
                "responses were not asked about; no tie is counted for them"
            )
    for participant in summary["participants"]:
        if participant["always"]:
            print(
                f"Warning: {participant['name']} chose {participant['always']!r} for all {participant['ratings']} "
                "pairs: look at these ratings (--ratings FILE) before you count them"
            )


def _outcome_table(summary: dict[str, Any]) -> Table:
    table = plain_table(f"Study {summary['study']}: per cent of ratings, with 95 % bootstrap intervals over prompts")
    table.add_column("policy against baseline", min_width=24)
    for name in (*OUTCOMES, "ratings", "prompts", "people", "alpha"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["comparisons"]:
        percent = row["percent"]
        table.add_row(
            escape(f"{row['policy']} against {row['baseline']}"),
            *[_share(percent[outcome]) if percent else "–" for outcome in OUTCOMES],
            str(row["ratings"]),
            f"{row['prompts_rated']} of {row['prompts']['asked']}",
            str(row["participants"]),
            "–" if row["alpha"] is None else f"{row['alpha']:.3f}",
        )
    table.caption = (
        "alpha: Krippendorff's, nominal (1: all agree, 0: as by chance); –: no prompt was rated twice, or all the same"
    )
    table.caption_justify = "left"
    return table


def _participant_table(summary: dict[str, Any]) -> Table:
    table = plain_table("Participants")
    table.add_column("name")
    for name in ("rated", "first", "second", "equal", "median seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["participants"]:
        seconds = row["median_seconds"]
        table.add_row(
            escape(row["name"]),
            f"{row['ratings']} of {row['assigned']}",
            *[str(row["choices"][choice]) for choice in ("first", "second", "equal")],
            "–" if seconds is None else f"{seconds:.1f}",
        )
    return table


def _share(percent: dict[str, Any]) -> str:
    if percent["low"] is None:
        return f"{percent['value']:.2f}"
    return f"{percent['value']:.2f} [{percent['low']:.0f}, {percent['high']:.0f}]"
