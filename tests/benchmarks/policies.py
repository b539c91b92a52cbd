"""The demo's model and prompts, for benchmarks of generation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from optune_core.data.model_folder import prompt_token_ids
from optune_core.data.schemas import PROMPTS, write_table
from optune_core.generation import Request
from optune_core.storage import ArtifactStore, Ref, Work

MODEL = Path(".optune/models/SmolLM2-135M-Instruct")
"""Model folder that `python -m configs.demo.prepare` makes."""


def prompt_table(model: Path, count: int) -> pa.Table:
    """Return the demo's first prompts (schema PROMPTS) in the chat template of the model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line)["prompt"] for line in Path("configs/demo/prompts.jsonl").read_text().splitlines()]
    rows = []
    for number, text in enumerate(texts[:count]):
        messages = [{"role": "user", "content": text}]
        ids = prompt_token_ids(tokenizer, messages)
        rows.append({"prompt_id": str(number), "prompt": text, "messages": messages, "prompt_token_ids": ids})
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def requests_for(prompts: Sequence[list[int]], samples: int, seed: Callable[[int, int], int]) -> list[Request]:
    """Return `samples` requests a prompt, prompt after prompt, as one shard.

    Args:
        prompts: token ids.
        seed: function of the row of a prompt and the number of its sample.
    """
    return [Request(0, row * samples + k, ids, seed(row, k)) for row, ids in enumerate(prompts) for k in range(samples)]


def store_inputs(store: ArtifactStore, model: Path, prompts: pa.Table) -> tuple[Ref, Ref]:
    """Commit policy and prompts; the prompts are in `prompts.parquet`."""
    with store.scratch() as scratch:
        shutil.copytree(model, scratch / "model")
        policy = store.commit(Work("model", 1, {}), scratch).ref
    with store.scratch() as scratch:
        write_table(prompts, PROMPTS, scratch / "prompts.parquet")
        return policy, store.commit(Work("prompts", 1, {}), scratch).ref
