"""Perform the pinned runs and evaluations in one store."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.integration.pinned import facts, runs


def measured(folder: Path, *, children: bool, only: Collection[str] = ()) -> Iterator[tuple[str, facts.Facts]]:
    """Perform all runs and evaluations, and yield the name and the facts of each.

    Args:
        folder: empty folder for inputs and the store.
        children: run each stage in a child process, as users run it.
        only: names of runs and kinds of evaluation; default: all.
    """
    runs.write_inputs(folder)
    with ExitStack() as stack:
        if not children:
            stack.enter_context(runs.stages_in_this_process())
        for name in runs.grid(folder):
            if not only or name in only:
                yield name, measured_run(folder, name)
        for kind in facts.EVALUATIONS:
            if not only or kind in only:
                yield kind, measured_evaluation(folder, kind)


def measured_run(folder: Path, name: str) -> facts.Facts:
    """Perform a run, and return its facts."""
    runs.perform(folder, folder / "store", name)
    return facts.run_facts(folder / "store", name)


def measured_evaluation(folder: Path, kind: str) -> facts.Facts:
    """Perform an evaluation of the run JUDGED, after that run itself, and return its facts."""
    runs.perform(folder, folder / "store", runs.JUDGED)
    server = runs.evaluations(folder, folder / "store")[kind]()
    return facts.evaluation_facts(folder / "store", runs.JUDGED, kind, server)
