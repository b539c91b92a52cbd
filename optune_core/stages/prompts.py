"""Stage `prompts`: the fixed prompt set of a run, drawn once and tokenised with the policy's chat template."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.prompts import Message, Prompt, Prompts, draw, normalise
from optune_core.data.schemas import FIXED_PAIRS, PROMPTS, write_table
from optune_core.data.shards import HELD_OUT_PROMPTS_FILE, TRAIN_PROMPTS_FILE
from optune_core.data.sources import read_source, require_columns, source_identity
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 3


class Spec(BaseModel):
    """Spec of the stage."""

    prompts: Prompts
    seed: int
    policy: Ref
    """π_0, whose tokenizer and chat template are used."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage.

    Raises:
        DataError: the source file cannot be read.
    """
    params = spec.prompts.model_dump(mode="json", exclude={"source"})
    params |= {"source": source_identity(spec.prompts.source), "seed": spec.seed}
    return [Work("prompts", VERSION, params, {"policy": spec.policy})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Read, normalise, draw and tokenise the prompts, and commit them.

    Raises:
        DataError: a column is missing, the source is empty, or there are too few usable prompts.
    """
    from optune_core.data.model_folder import load_tokenizer, prompt_token_ids

    (work,) = works(store, spec)
    config = spec.prompts
    table = read_source(config.source)
    columns = [config.column, *(config.pairs.model_dump().values() if config.pairs else [])]
    require_columns(table, columns, config.source)
    tokenizer: Any = load_tokenizer(store.fetch(spec.policy) / "model", "policy")

    def token_ids(messages: list[Message]) -> list[int]:
        progress("tokenise prompts", 0, 0)
        return prompt_token_ids(tokenizer, messages)

    drops: Counter[str] = Counter()
    prompts = list(normalise(table.select(columns).to_pylist(), config, drops))
    train, held_out = draw(prompts, token_ids, config, spec.seed, drops)
    schema = FIXED_PAIRS if config.pairs else PROMPTS
    with store.scratch() as scratch:
        write_table(_table(train, schema), schema, scratch / TRAIN_PROMPTS_FILE)
        write_table(_table(held_out, schema), schema, scratch / HELD_OUT_PROMPTS_FILE)
        rows = {"rows": table.num_rows, "train": len(train), "held_out": len(held_out)}
        store.commit(work, scratch, metrics=rows | {"left_out": dict(sorted(drops.items()))})


def _table(prompts: list[tuple[Prompt, list[int]]], schema: pa.Schema) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "prompt_id": [prompt.prompt_id for prompt, _ in prompts],
        "prompt": [prompt.text for prompt, _ in prompts],
        "messages": [prompt.messages for prompt, _ in prompts],
        "prompt_token_ids": [ids for _, ids in prompts],
        "chosen": [prompt.chosen for prompt, _ in prompts],
        "rejected": [prompt.rejected for prompt, _ in prompts],
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


STAGE = Stage("prompts", Spec, works, run, needs="tokenizer")
