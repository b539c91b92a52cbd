"""Stage `fixed-pairs`: the preference set of offline DPO as responses: sample 0 is chosen, sample 1 rejected."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.progress import Progress
from optune_core.schemas import FIXED_PAIRS, RESPONSES, read_table, write_table
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2


class Spec(BaseModel):
    prompts: dict[str, str]
    """Reference to a prompt set with pairs."""
    policy: dict[str, str]
    """Reference to π_0, whose tokenizer turns the texts into token ids."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work."""
    parents = {"prompts": Ref.from_json(spec.prompts), "policy": Ref.from_json(spec.policy)}
    return [Work("fixed-pairs", VERSION, {}, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Tokenise each response once, with the end-of-turn token that a sampled response would have."""
    from optune_core.models import load_tokenizer

    (work,) = works(store, spec)
    tokenizer: Any = load_tokenizer(store.fetch(Ref.from_json(spec.policy)) / "model", "policy")
    prompts = read_table(store.fetch(Ref.from_json(spec.prompts)) / "train.parquet", FIXED_PAIRS)
    progress("tokenise pairs", 0, prompts.num_rows)
    rows = []
    for prompt in prompts.to_pylist():
        for sample, side in enumerate(("chosen", "rejected")):
            text = prompt.pop(side)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = {"response": text, "response_token_ids": [*ids, tokenizer.eos_token_id], "finish_reason": "stop"}
            rows.append(prompt | {"sample": sample} | answer)
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=RESPONSES), RESPONSES, scratch / "responses.parquet")
        store.commit(work, scratch, metrics={"pairs": prompts.num_rows})
