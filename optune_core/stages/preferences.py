"""Stage `preferences`: pairs that a reward model is trained on, from a file or from labelled responses of π_0."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.preferences import held_out_prompts, label_pairs
from optune_core.data.prompts import as_messages, last_assistant_text
from optune_core.data.schemas import PREFERENCES, RESPONSES, write_table
from optune_core.data.shards import PREFERENCES_FILE, RESPONSES_FILE, read_shards, shard_parents
from optune_core.data.sources import read_source, require_columns, source_identity
from optune_core.errors import DataError
from optune_core.process.progress import Progress
from optune_core.rewards.function import function_digest, load_function
from optune_core.rewards.trained import FilePairs, LabelledPairs, PreferencePairs
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work
from optune_core.storage.canonical import digest

VERSION = 2


class Spec(BaseModel):
    """Spec of the stage."""

    pairs: PreferencePairs
    held_out_fraction: float
    seed: int
    responses: list[Ref]
    """Shards of π_0's responses; empty for pairs from a file."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage.

    Raises:
        DataError: the source file cannot be read.
        ConfigError: the function that labels cannot be found.
    """
    if isinstance(spec.pairs, FilePairs):
        params: dict[str, Any] = {"source": source_identity(spec.pairs.source)}
    else:
        params = spec.pairs.model_dump() | {"identity": function_digest(spec.pairs.function)}
    params |= {"held_out_fraction": spec.held_out_fraction, "seed": spec.seed}
    return [Work("preferences", VERSION, params, shard_parents("responses", spec.responses))]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Make the pairs, hold a share of their prompts out, and commit them.

    Raises:
        DataError: the source cannot be read or lacks columns, or no usable pair is left.
        ConfigError: the function that labels cannot be imported.
    """
    (work,) = works(store, spec)
    progress("label pairs", 0, 0)
    rows, dropped = _from_file(spec.pairs) if isinstance(spec.pairs, FilePairs) else _labelled(store, spec, spec.pairs)
    if not rows:
        raise DataError(
            "no preference pair is left, since every prompt is malformed, empty or tied: correct the data of "
            "reward.pairs"
        )
    held_out = held_out_prompts([row["prompt_id"] for row in rows], spec.held_out_fraction, spec.seed)
    for row in rows:
        row["held_out"] = row["prompt_id"] in held_out
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=PREFERENCES), PREFERENCES, scratch / PREFERENCES_FILE)
        prompts = {row["prompt_id"] for row in rows}
        counts = {"pairs": len(rows), "prompts": len(prompts), "held_out_prompts": len(held_out), "dropped": dropped}
        store.commit(work, scratch, metrics=counts)


def _from_file(pairs: FilePairs) -> tuple[list[dict[str, Any]], int]:
    """Return the pairs, and how many rows hold none: they are malformed or empty, or both responses are equal."""
    table = read_source(pairs.source)
    columns = ["prompt", "chosen", "rejected"]
    require_columns(table, columns, pairs.source)
    rows = []
    for row in table.select(columns).to_pylist():
        messages = as_messages(row["prompt"])
        chosen, rejected = last_assistant_text(row["chosen"]), last_assistant_text(row["rejected"])
        if isinstance(messages, list) and chosen and rejected and chosen != rejected:
            prompt_id = digest(messages)[:32]
            rows.append({"prompt_id": prompt_id, "messages": messages, "chosen": chosen, "rejected": rejected})
    return rows, table.num_rows - len(rows)


def _labelled(store: ArtifactStore, spec: Spec, pairs: LabelledPairs) -> tuple[list[dict[str, Any]], int]:
    """Return the pairs, and how many prompts have none: fewer than two responses are not empty, or all are tied."""
    label = load_function(pairs.function)
    groups: dict[str, list[dict[str, Any]]] = {}
    asked = set()
    for row in read_shards(store, spec.responses, RESPONSES_FILE, RESPONSES).to_pylist():
        asked.add(row["prompt_id"])
        if row["response"].strip():
            groups.setdefault(row["prompt_id"], []).append(row)
    rows: list[dict[str, Any]] = []
    for prompt_id, group in groups.items():
        texts = [row["response"] for row in group]
        scores = [float(score) for score in label([row["prompt"] for row in group], texts)]
        for chosen, rejected in label_pairs(scores, pairs.max_pairs_per_prompt):
            sides = {"chosen": texts[chosen], "rejected": texts[rejected]}
            rows.append({"prompt_id": prompt_id, "messages": group[0]["messages"], **sides})
    return rows, len(asked - {row["prompt_id"] for row in rows})


STAGE = Stage("preferences", Spec, works, run)
