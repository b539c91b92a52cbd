"""Stage `preferences`: the pairs a reward model is trained on, from a file or labelled from π_0's own samples."""

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

Row = dict[str, Any]


class Spec(BaseModel):
    pairs: PreferencePairs
    held_out_fraction: float
    seed: int
    responses: list[Ref]
    """π_0's responses; empty for pairs from a file."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work."""
    if isinstance(spec.pairs, FilePairs):
        params: dict[str, Any] = {"source": source_identity(spec.pairs.source)}
    else:
        params = spec.pairs.model_dump() | {"identity": function_digest(spec.pairs.function)}
    params |= {"held_out_fraction": spec.held_out_fraction, "seed": spec.seed}
    return [Work("preferences", VERSION, params, shard_parents("responses", spec.responses))]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Raises DataError for missing columns or no usable pair."""
    (work,) = works(store, spec)
    progress("label pairs", 0, 0)
    rows, dropped = _from_file(spec.pairs) if isinstance(spec.pairs, FilePairs) else _labelled(store, spec, spec.pairs)
    if not rows:
        raise DataError("no preference pair is left: every prompt is malformed, empty or tied")
    held_out = held_out_prompts([row["prompt_id"] for row in rows], spec.held_out_fraction, spec.seed)
    for row in rows:
        row["held_out"] = row["prompt_id"] in held_out
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=PREFERENCES), PREFERENCES, scratch / PREFERENCES_FILE)
        prompts = {row["prompt_id"] for row in rows}
        counts = {"pairs": len(rows), "prompts": len(prompts), "held_out_prompts": len(held_out), "dropped": dropped}
        store.commit(work, scratch, metrics=counts)


def _from_file(pairs: FilePairs) -> tuple[list[Row], int]:
    """The pairs, and how many rows hold none: malformed, empty, or twice the same response."""
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


def _labelled(store: ArtifactStore, spec: Spec, pairs: LabelledPairs) -> tuple[list[Row], int]:
    """The pairs, and how many prompts have none: fewer than two responses that are not empty, or all are equal."""
    label = load_function(pairs.function)
    groups: dict[str, list[Row]] = {}
    asked = set()
    for row in read_shards(store, spec.responses, RESPONSES_FILE, RESPONSES).to_pylist():
        asked.add(row["prompt_id"])
        if row["response"].strip():
            groups.setdefault(row["prompt_id"], []).append(row)
    rows: list[Row] = []
    for prompt_id, group in groups.items():
        texts = [row["response"] for row in group]
        scores = [float(score) for score in label([row["prompt"] for row in group], texts)]
        for chosen, rejected in label_pairs(scores, pairs.max_pairs_per_prompt):
            sides = {"chosen": texts[chosen], "rejected": texts[rejected]}
            rows.append({"prompt_id": prompt_id, "messages": group[0]["messages"], **sides})
    return rows, len(asked - {row["prompt_id"] for row in rows})


STAGE = Stage("preferences", Spec, works, run)
