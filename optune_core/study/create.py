"""Creation of a study: an artifact with its pairs, and the record that gives it a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from optune_core.data.schemas import STUDY_PAIRS, read_table, write_table
from optune_core.errors import StudyError
from optune_core.storage import ArtifactStore, Work
from optune_core.storage.studies import StudyLedger, list_studies
from optune_core.study.pairing import ASKED, StudyPair, asked_pairs, comparisons, pair_up
from optune_core.study.sources import AnswerSource, of_file, of_run

VERSION = 1
FILE = "pairs.parquet"


def create_study(
    store: ArtifactStore,
    study: str,
    runs: Sequence[str],
    files: Sequence[tuple[str, str]],
    prompts: int,
    baseline: str | None,
) -> dict[str, Any]:
    """Draw the pairs and create the study. The same call again finds the existing study.

    Args:
        store: the store.
        study: name of the study, which also seeds the draw.
        runs: names of runs whose policies are compared.
        files: (name, path) of files with responses; together with the runs two or three sources.
        prompts: largest number of pairs per comparison.
        baseline: name of the source that the others are compared with; None: the first source is compared with each
            of the others.

    Returns:
        Record of the study: `study`, `sources` (identity of each source by name), `prompts`, `pairs` (reference to the
        artifact), and `comparisons`, each with the names `policy` and `baseline` and the number of prompts by outcome.

    Raises:
        StudyError: there are fewer than two or more than three sources, their names are not distinct, the baseline is
            not one of them, a run has no responses, a comparison has no pair, or the study exists with other pairs.
        DataError: a file cannot be used.
    """
    ledger = StudyLedger(store.objects, study)
    names = [*runs, *(name for name, _ in files)]
    if len(names) not in (2, 3) or len(set(names)) != len(names):
        raise StudyError(
            f"{len(names)} sources ({', '.join(names) or 'none'}) were given: "
            "a study needs two or three with different names"
        )
    if baseline is not None and baseline not in names:
        raise StudyError(f"baseline {baseline!r} is not one of the sources {', '.join(names)}: name one of these")
    sources = [*(of_run(store, run) for run in runs), *(of_file(name, path) for name, path in files)]
    compared = comparisons(sources, baseline)
    rows = pair_up(compared, prompts, seed=study)
    counts = [
        {"policy": policy.name, "baseline": other.name, "prompts": _outcomes(rows, policy, other)}
        for policy, other in compared
    ]
    for comparison in counts:
        _require_pairs(comparison)
    parents = {f"{source.name}/{shard}": ref for source in sources for shard, ref in enumerate(source.parents)}
    params = {
        "seed": study,
        "prompts": prompts,
        "sources": {source.name: source.identity for source in sources},
        "comparisons": [[policy.name, other.name] for policy, other in compared],
    }
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=STUDY_PAIRS), STUDY_PAIRS, scratch / FILE)
        manifest = store.commit(Work("study", VERSION, params, parents), scratch, metrics={"comparisons": counts})
    record = {
        "study": study,
        "sources": params["sources"],
        "prompts": prompts,
        "comparisons": counts,
        "pairs": manifest.ref,
    }
    ledger.create(record)
    return record


def open_study(store: ArtifactStore, study: str) -> tuple[StudyLedger, dict[str, Any], list[StudyPair]]:
    """Return a study's ledger, its record, and the pairs that it asks about, in the order of their numbers.

    Raises:
        StudyError: the study does not exist; the message lists the studies of the store.
    """
    ledger = StudyLedger(store.objects, study)
    record = ledger.record()
    if record is None:
        known = ", ".join(list_studies(store.objects)) or "none"
        raise StudyError(f"store {store.objects.url!r} has no study {study!r}; its studies: {known}")
    table = read_table(store.fetch(record["pairs"]) / FILE, STUDY_PAIRS)
    return ledger, record, asked_pairs(table.to_pylist())


def _outcomes(rows: Sequence[dict[str, Any]], policy: AnswerSource, baseline: AnswerSource) -> dict[str, int]:
    matching = (row for row in rows if (row["policy"], row["baseline"]) == (policy.name, baseline.name))
    return dict(sorted(Counter(row["outcome"] for row in matching).items()))


def _require_pairs(comparison: dict[str, Any]) -> None:
    outcomes = comparison["prompts"]
    if ASKED not in outcomes:
        found = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "none on either side"
        raise StudyError(
            f"{comparison['policy']} against {comparison['baseline']}: no prompt can be asked about ({found}). The two "
            "sides need different responses to the same prompts; runs share held-out prompts if their `prompts` and "
            "`seed` are the same"
        )
