"""A workload, a device and a model small enough for sums by hand."""

from __future__ import annotations

from optune_core.generation.vllm import VllmEngine
from optune_core.plan import Device, ModelShape, Workload
from optune_core.training.spec import Training
from tests.tiny import WDPO

ZEPHYR = "configs/zephyr-7b.yaml"
TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": True,
}

SHAPE = ModelShape(parameters=11_000, layers=2, hidden=10, kv_width=5, vocabulary=100, tied=True)
DEVICE = Device(
    name="round",
    bandwidth=1e5,
    prefill=1e6,
    decode=1e6,
    training=1e6,
    scoring=1e6,
    storage=1e5,
    start_seconds=3.0,
    step_seconds=0.01,
    token_seconds=0.001,
    eager_step_seconds=0.05,
    memory=None,
    row_seconds=0.5,
)

WORK = Workload(
    policy=SHAPE,
    reward=SHAPE,
    prompts=8,
    samples=2,
    prompt_tokens=10,
    response_tokens=4,
    pair_response_tokens=4,
    max_prompt_tokens=12,
    max_response_tokens=6,
    shard_size=8,
    engine=VllmEngine(max_num_seqs=4),
    training=Training(loss=WDPO, batch_size=4, micro_batch_tokens=8192),
    devices=2,
)
