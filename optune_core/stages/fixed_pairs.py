"""Stage `fixed-pairs`: the preference set of offline DPO, as responses of which 0 is chosen and 1 is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.row_groups import count_rows, read_groups, write_groups
from optune_core.data.schemas import FIXED_PAIRS, RESPONSES
from optune_core.data.shards import RESPONSES_FILE, TRAIN_PROMPTS_FILE
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2


class Spec(BaseModel):
    """Spec of the stage."""

    prompts: Ref
    """A prompt set with pairs."""
    policy: Ref
    """π_0, whose tokenizer turns the texts into token ids."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage."""
    parents = {"prompts": spec.prompts, "policy": spec.policy}
    return [Work("fixed-pairs", VERSION, {}, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Tokenise the responses, each with the end-of-turn token that a sampled response has, and commit them.

    Raises:
        ModelError: the policy's tokenizer cannot be used.
    """
    from optune_core.data.model_folder import load_tokenizer

    (work,) = works(store, spec)
    tokenizer: Any = load_tokenizer(store.fetch(spec.policy) / "model", "policy")
    file = store.fetch(spec.prompts) / TRAIN_PROMPTS_FILE
    pairs, done = count_rows(file), 0

    def tokenised() -> Iterator[pa.Table]:
        nonlocal done
        for group in read_groups([file], FIXED_PAIRS):
            progress("tokenise pairs", done, pairs)
            yield as_responses(group, tokenizer)
            done += group.num_rows

    with store.scratch() as scratch:
        write_groups(tokenised(), RESPONSES, scratch / RESPONSES_FILE)
        store.commit(work, scratch, metrics={"pairs": pairs})


def as_responses(pairs: pa.Table, tokenizer: Any) -> pa.Table:
    """Return two responses a prompt (schema RESPONSES) from its pair (schema FIXED_PAIRS)."""
    rows = []
    for prompt in pairs.to_pylist():
        for sample, side in enumerate(("chosen", "rejected")):
            text = prompt.pop(side)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = {"response": text, "response_token_ids": [*ids, tokenizer.eos_token_id], "finish_reason": "stop"}
            rows.append(prompt | {"sample": sample} | answer)
    return pa.Table.from_pylist(rows, schema=RESPONSES)


STAGE = Stage("fixed-pairs", Spec, works, run, needs="tokenizer")
