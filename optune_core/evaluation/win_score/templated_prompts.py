"""Stage `templated-prompts`: the same prompts for another model, in its chat template and its token ids."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.schemas import PROMPTS, read_table, write_table
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "prompts.parquet"


class Spec(BaseModel):
    prompts: Ref
    """The artifact that holds them."""
    file: str
    policy: Ref
    """The model that is to read them."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work."""
    parents = {"prompts": spec.prompts, "policy": spec.policy}
    return [Work("templated-prompts", VERSION, {"file": spec.file}, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Tokenise every prompt; none is left out, however long it is in this template."""
    from optune_core.data.model_folder import load_tokenizer, prompt_token_ids

    (work,) = works(store, spec)
    prompts = read_table(store.fetch(spec.prompts) / spec.file, PROMPTS)
    tokenizer: Any = load_tokenizer(store.fetch(spec.policy) / "model", "baseline")
    token_ids = []
    for messages in prompts["messages"].to_pylist():
        token_ids.append(prompt_token_ids(tokenizer, messages))
        progress("tokenise prompts", len(token_ids), prompts.num_rows)
    column = PROMPTS.get_field_index("prompt_token_ids")
    table = prompts.set_column(column, PROMPTS.field(column), pa.array(token_ids, PROMPTS.field(column).type))
    with store.scratch() as scratch:
        write_table(table, PROMPTS, scratch / FILE)
        longest = max(map(len, token_ids), default=0)
        store.commit(work, scratch, metrics={"prompts": table.num_rows, "longest": longest})


STAGE = Stage("templated-prompts", Spec, works, run, needs="tokenizer")
