"""Output about runs, artifacts and prompts' histories, for people (tables) and programs (JSON)."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from rich.table import Table

from optune_core.console.tables import plain_table, wide_console
from optune_core.data.row_groups import read_groups
from optune_core.data.schemas import REPLAY
from optune_core.errors import OptuneError
from optune_core.reports.render import change_text
from optune_core.reports.run_state import progress, require_run, state_text
from optune_core.reports.summary import held_out_change, summarise
from optune_core.storage import ArtifactStore, Ledger, Ref, open_objects
from optune_core.storage.ledger import list_runs
from optune_core.words import number

_CONSOLE = wide_console()


def runs_status(store_url: str) -> list[dict[str, Any]]:
    """Return name, committed and wanted iterations and state of every run."""
    objects = open_objects(store_url)
    return [progress(Ledger(objects, run)) for run in list_runs(objects)]


def run_status(store_url: str, run: str) -> dict[str, Any]:
    """Return a run's progress, its iterations and the change of its held-out rewards.

    Raises:
        OptuneError: there is no such run.
    """
    store = ArtifactStore(open_objects(store_url))
    ledger = Ledger(store.objects, run)
    require_run(ledger)
    rows = summarise(store, run)
    record = ledger.iteration(len(rows) - 1) if rows else None
    return progress(ledger) | {
        "run": run,
        "iterations": rows,
        "overall": held_out_change(store, ledger, 0, len(rows)),
        "policy": record["artifacts"]["policy"] if record else None,
        "replay": record["artifacts"]["replay"] if record else None,
    }


def print_runs(store_url: str) -> None:
    """Print a line a run."""
    table = Table("run", "iterations committed", "wanted", "state", title=f"Runs in {store_url}")
    for row in runs_status(store_url):
        table.add_row(row["run"], str(row["committed"]), number(row["wanted"], 0), state_text(row))
    _CONSOLE.print(table)


def print_run(store_url: str, run: str) -> None:
    """Print a run's table."""
    status = run_status(store_url, run)
    print_summary(store_url, status)
    _CONSOLE.print(f"state: {state_text(status)}", soft_wrap=True, markup=False)


def print_summary(store_url: str, summary: dict[str, Any]) -> None:
    """Print the work and the time of each iteration, the change on held-out prompts, and where the results are."""
    _CONSOLE.print(_work_table(summary))
    if summary["overall"]:
        _CONSOLE.print(_reward_table(summary))
    if summary["policy"] is not None:
        _CONSOLE.print(f"policy:     {_location(store_url, summary['policy'])}/model", soft_wrap=True)
        _CONSOLE.print(f"replay set: {_location(store_url, summary['replay'])}/replay.parquet", soft_wrap=True)


def _work_table(summary: dict[str, Any]) -> Table:
    table = plain_table(f"Run {summary['run']}: prompts; loss of the first step beside mean(R)·ln 2; seconds")
    names = ("t", "regen.", "reused", "drops", "loss", "R·ln2", "engine", "gen.", "score", "train", "saved", "speed-up")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["iterations"]:
        seconds = row["seconds"]
        table.add_row(
            str(row["iteration"]),
            str(row["regenerated"]),
            str(row["reused"]),
            str(row["kept"] + row["unpaired"]),
            number(row["first_loss"], 5),
            number(row["first_loss_expected"], 5),
            *[number(seconds[stage], 0) for stage in ("start engine", "generate", "score", "train")],
            number(row["seconds_saved"], 0),
            number(row["speedup"], 2),
        )
    return table


def _reward_table(summary: dict[str, Any]) -> Table:
    prompts = max(change["prompts"] for change in summary["overall"].values())
    table = plain_table(f"Mean reward on {prompts} held-out prompts: before → after (change, 95 % interval)")
    table.add_column("t", justify="right")
    for reward in summary["overall"]:
        table.add_column(reward)
    for row in summary["iterations"]:
        table.add_row(str(row["iteration"]), *[change_text(row.get(reward)) for reward in summary["overall"]])
    table.add_section()
    table.add_row("all", *[change_text(change) for change in summary["overall"].values()])
    return table


def print_artifact(store_url: str, stage: str, key: str) -> None:
    """Print an artifact's manifest.

    Raises:
        OptuneError: no artifact, or several, match.
    """
    store = ArtifactStore(open_objects(store_url))
    matches = [name for name in store.keys(stage) if name.startswith(key)]
    if len(matches) != 1:
        found = f"{len(matches)} artifacts match, give more of the key" if matches else "no such artifact"
        raise OptuneError(f"{stage}/{key} in {store_url!r}: {found}")
    manifest = store.committed(stage, matches[0])
    if manifest is None:
        raise OptuneError(
            f"{stage}/{matches[0]} was never committed: the store holds only attempts that did not finish"
        )
    _CONSOLE.print_json(manifest.to_bytes().decode())


def print_history(store_url: str, run: str | None, prompt_id: str) -> None:
    """Print a prompt's pair in every iteration of a run.

    Raises:
        OptuneError: the run is not named and there are several, or it does not hold the prompt.
    """
    store = ArtifactStore(open_objects(store_url))
    runs = list_runs(store.objects)
    if run is None:
        if len(runs) != 1:
            raise OptuneError(f"--run is needed: the store holds {', '.join(runs) or 'no runs'}")
        run = runs[0]
    found = False
    for record in Ledger(store.objects, run).iterations():
        folder = store.fetch(record["artifacts"]["replay"])
        groups = read_groups([folder / "replay.parquet"], REPLAY)
        found_here = (group.filter(pc.starts_with(group["prompt_id"], prompt_id)) for group in groups)
        for row in (row for group in found_here for row in group.to_pylist()):
            if not found:
                _CONSOLE.print(f"prompt {row['prompt_id']}: {row['prompt']}", markup=False)
            found = True
            reason = f" ({row['reason']})" if row["reason"] else ""
            _CONSOLE.rule(f"iteration {record['iteration']}: {row['status']}{reason}, pair of {row['generated_at']}")
            for side in ("chosen", "rejected"):
                _CONSOLE.print(f"{side} ({number(row[f'{side}_reward'], 3)}): {row[side]}", markup=False)
    if not found:
        raise OptuneError(f"run {run!r} holds no prompt {prompt_id!r}")


def _location(store_url: str, ref: Ref) -> str:
    return ArtifactStore(open_objects(store_url)).location(ref)
