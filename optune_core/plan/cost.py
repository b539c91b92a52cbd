"""Seconds of each stage of an iteration, by pure functions. Every formula is in a docstring, with its units.

Lengths enter as means, so attention, which is quadratic in them, is slightly under-estimated. Work that the ledger does
not time is not predicted either: the rewards on held-out prompts, the start of processes, transfers to S3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from optune_core.errors import OptuneError
from optune_core.generation.engine import Engine
from optune_core.generation.vllm import VllmEngine
from optune_core.plan.devices import Device
from optune_core.plan.shape import ModelShape
from optune_core.training.spec import Training

STAGES = ("start engine", "generate", "score", "rank and merge", "train")
"""Names of the stages, as in the timing of a committed iteration."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_OPTIMIZER_BYTES = {"rmsprop": 20, "adamw_torch": 28}
"""Bytes moved per weight and optimizer step, in float32: weight and moments read and written, gradient read."""
_MASTER, _PUBLISHED = 4, 2


@dataclass(frozen=True)
class Workload:
    """Work of an iteration, except for the number of regenerated prompts."""

    policy: ModelShape
    reward: ModelShape | None
    """Shape of the reward model; None for a reward function, whose time is neglected."""
    prompts: int
    samples: int
    """Number of responses per regenerated prompt (K)."""
    prompt_tokens: float
    """Mean length of the prompts in tokens."""
    response_tokens: float
    """Mean length of fresh responses in tokens."""
    pair_response_tokens: float
    """Mean length of the responses in the replay set's pairs in tokens."""
    max_prompt_tokens: int
    max_response_tokens: int
    shard_size: int
    """Number of prompts per shard of generation."""
    engine: Engine
    training: Training
    devices: int
    """Number of devices that train together, each with all weights or a part of them."""
    engines: int = 1
    """Number of engines side by side, each on `engine.devices` devices."""
    scorers: int = 1
    """Number of reward models side by side, each on one device."""
    layout: Literal["packed", "padded"] = "packed"
    """Layout of pairs in training. `packed`: prompt, chosen, rejected without padding, with logits at the responses.
    `padded`: two sequences per pair, both with the prompt, padded to the maxima, with all logits, and a reference pass
    in every epoch."""


def stage_seconds(work: Workload, device: Device, selected: int) -> dict[str, float]:
    """Predict the seconds of an iteration by stage.

    Args:
        work: work of the iteration; it trains on all prompts.
        device: the device's effective rates.
        selected: number of prompts that the iteration regenerates.

    Raises:
        OptuneError: the policy does not fit in the engine's memory.
    """
    seconds = {
        "start engine": _start(work, device) if selected else 0.0,
        "generate": _generate(work, device, selected) if selected else 0.0,
        "score": _score(work, device, selected),
        "rank and merge": work.prompts * device.row_seconds,
        "train": _train(work, device),
    }
    return {stage: device.factors.get(stage, 1.0) * value for stage, value in seconds.items()}


def _start(work: Workload, device: Device) -> float:
    """Seconds = start_seconds + weights [bytes] / storage [bytes/s]."""
    return device.start_seconds + _weight_bytes(work) / device.storage


def _generate(work: Workload, device: Device, selected: int) -> float:
    """Seconds of prefill and of the batches' decoding steps, for n prompts and S = n·K sequences per engine.

    prefill = n · forward(prompt) / prefill [FLOP/s]; K samples share the cached prompt.
    decoding = max(reading, products) + attention + steps · step_seconds + sampled tokens · token_seconds:
        reading = steps · weights [bytes] / bandwidth [bytes/s];
        products = S · forward(response) / decode [FLOP/s];
        attention = sampled tokens · mean context · KV bytes per token / bandwidth [bytes/s].
    The weights are read once per step for the complete batch. So a small batch takes as long as a larger one, up to the
    size at which the products take longer than the reading.
    """
    prompts = selected / work.engines
    sequences = prompts * work.samples
    policy, p = work.policy, work.prompt_tokens
    kv = policy.kv_bytes(_BYTES[work.engine.dtype])
    if isinstance(work.engine, VllmEngine):
        steps = _steps(work, running_batch(work, device), sequences)
        prefilled, r, tokens = prompts, work.response_tokens, sequences * work.response_tokens
        overhead = steps * device.step_seconds + tokens * device.token_seconds
    else:
        # No sequence joins a running batch: all rows run until its longest response ends, near the maximum.
        steps = max(1.0, sequences / work.engine.sequences) * work.max_response_tokens
        prefilled, r, tokens = sequences, work.max_response_tokens, sequences * work.max_response_tokens
        overhead = steps * device.eager_step_seconds
    prefill = prefilled * policy.forward_flops(p, _causal(p), 1) / device.prefill
    reading = steps * _weight_bytes(work) / device.bandwidth
    products = sequences * policy.forward_flops(r, 0, r) / device.decode
    attention = tokens * (p + r / 2) * kv / device.bandwidth
    return (prefill + max(reading, products) + attention) / work.engine.devices + overhead


def running_batch(work: Workload, device: Device) -> float:
    """Return the number of sequences that vLLM decodes at once: `max_num_seqs`, or as many as its cache can hold.

    Raises:
        OptuneError: the weights leave no room for a single sequence.
    """
    assert isinstance(work.engine, VllmEngine)
    engine, weights = work.engine, _weight_bytes(work)
    if device.memory is None:
        cache = engine.cpu_kv_cache_gib * 2.0**30
    else:
        cache = device.memory * engine.gpu_memory_utilization * engine.tensor_parallel_size - weights
    fitting = cache / (work.policy.kv_bytes(_BYTES[engine.dtype]) * (work.prompt_tokens + work.response_tokens))
    if fitting < 1:
        raise OptuneError(
            f"the policy's {weights / 1e9:.1f} GB of weights leave {max(0.0, cache) / 1e9:.1f} GB of "
            f"{engine.tensor_parallel_size} × {device.name} for a key-value cache, too little for one sequence: "
            "raise generation.engine.tensor_parallel_size"
        )
    return min(float(engine.max_num_seqs), fitting)


def _steps(work: Workload, batch: float, sequences: float) -> float:
    """Number of decoding steps of an engine.

    A shard of s sequences takes response · max(1, s / batch) steps with a full batch, and maximum − response more until
    its longest response ends. With repeatable generation the next shard waits for that end; otherwise all shards of an
    engine run as one.
    """
    assert isinstance(work.engine, VllmEngine)
    shard = min(sequences, float(work.shard_size * work.samples)) if work.engine.repeatable else sequences
    longest = max(work.max_response_tokens, work.response_tokens)
    steps = work.response_tokens * max(1.0, shard / batch) + longest - work.response_tokens
    return steps * sequences / shard


def _score(work: Workload, device: Device, selected: int) -> float:
    """Seconds = S sequences · forward(prompt + response) / scoring [FLOP/s], without logits and without loading."""
    if work.reward is None:
        return 0.0
    tokens = work.prompt_tokens + work.response_tokens
    flops = selected * work.samples * work.reward.forward_flops(tokens, _causal(tokens), 0)
    return flops / (work.scorers * device.scoring)


def _train(work: Workload, device: Device) -> float:
    """Seconds = pairs · forward(pair) · passes / (devices · training [FLOP/s]) + optimizer steps + weight files.

    passes: 1 for the reference (none for Best-of-N) and 3 per epoch (a backward pass costs two forward passes); 1 more
        per epoch with gradient checkpointing; 1 less with LoRA, whose frozen weights need no gradient.
    optimizer step = weights · 20 bytes (RMSprop; AdamW 28) / bandwidth [bytes/s], for all weights on every device; it
        takes less where FSDP divides them.
    weight files = 2 loads in float32 (reference, training), one save in float32 and one in bfloat16, / storage
        [bytes/s].
    """
    training, policy = work.training, work.policy
    epoch = 3 + int(training.gradient_checkpointing) - int(training.lora is not None)
    references = training.epochs if work.layout == "padded" else 1
    if not training.loss.needs_reference:
        references = 0
    flops = work.prompts * pair_flops(work) * (references + training.epochs * epoch)
    updates = math.ceil(work.prompts / training.batch_size) * training.epochs
    update = 0.0 if training.lora else policy.parameters * _OPTIMIZER_BYTES[training.optimizer] / device.bandwidth
    files = policy.parameters * (2 * _MASTER + _MASTER + _PUBLISHED) / device.storage
    return flops / (work.devices * device.training) + updates * update + files


def pair_flops(work: Workload) -> float:
    """Return the FLOPs of one forward pass over a pair, in the layout of the workload. A loss may omit the rejected
    response."""
    n = 2 if work.training.loss.needs_rejected else 1
    if work.layout == "padded":
        padded = work.max_prompt_tokens + work.max_response_tokens
        return n * work.policy.forward_flops(padded, _causal(padded), padded)
    p, r = work.prompt_tokens, work.pair_response_tokens
    return work.policy.forward_flops(p + n * r, _causal(p) + n * (r * p + _causal(r)), n * r)


def _causal(tokens: float) -> float:
    """Number of positions that the tokens of a sequence attend to, each to the earlier ones: tokens² / 2."""
    return tokens * tokens / 2


def _weight_bytes(work: Workload) -> float:
    return work.policy.parameters * _BYTES[work.engine.dtype]
