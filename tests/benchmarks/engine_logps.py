"""The error of the engine's log-probabilities against torch, and the share of prefixes from the cache.

    python -m tests.benchmarks.engine_logps --json FILE

vLLM in bfloat16 samples responses; torch computes log π(y|x) of the same tokens with float32 weights, under bfloat16
autocast (as training does) and in plain float32. The error of the loss is that of an iteration's first step, in
which policy and reference are the same and the loss is R·ln 2: if the engine's log-probabilities are those of the
reference, the margin of a pair has an error of β₁ times the difference of its two errors.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from optune_core.generation import Request, Response, sampling_seed
from optune_core.generation.section import Generation
from optune_core.generation.vllm import VllmEngine, VllmSampler
from tests.benchmarks.policies import MODEL, prompt_table, requests_for

SAMPLES, MAX_TOKENS, BETA1 = 2, 96, 0.1


def sample(model: Path, prompts: int, dtype: str) -> tuple[list[Request], list[Response], float]:
    """Return (requests, responses, share of the later samples' prompt tokens that came from the prefix cache)."""
    engine = VllmEngine(dtype=dtype, max_num_seqs=32, enforce_eager=True, gpu_memory_utilization=0.3)
    opened = VllmSampler(
        Generation(samples=SAMPLES, max_tokens=MAX_TOKENS, logps=True, engine=engine), engine, model, 256 + MAX_TOKENS
    )
    cached: dict[str, int] = {}
    step = opened._llm.llm_engine.step

    def recording_step() -> Any:
        outputs = step()
        cached.update({output.request_id: output.num_cached_tokens or 0 for output in outputs})
        return outputs

    opened._llm.llm_engine.step = recording_step
    rows = prompt_table(model, prompts)["prompt_token_ids"].to_pylist()
    requests = requests_for(rows, SAMPLES, lambda row, k: sampling_seed(0, 0, str(row), k))
    responses = sorted(opened.generate(requests), key=lambda response: response.index)
    later = [request for request in requests if request.index % SAMPLES]
    shared = sum(cached[f"0/{request.index}"] for request in later)
    return requests, responses, shared / sum(len(request.prompt_token_ids) for request in later)


@torch.inference_mode()
def torch_logps(model: Path, requests: list[Request], responses: list[Response], autocast: bool) -> Tensor:
    """Return log π(y|x) of every response with float32 weights, as float64 of shape (responses,)."""
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    logps = []
    for request, response in zip(requests, responses, strict=True):
        ids = torch.tensor([request.prompt_token_ids + response.token_ids], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = policy(input_ids=ids).logits[0, :-1]
        token_logps = logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[-len(response.token_ids) :]
        logps.append(float(token_logps.double().sum()))
    return torch.tensor(logps, dtype=torch.float64)


def compare(engine: Tensor, other: Tensor) -> dict[str, float]:
    """Return differences of sequence log-probabilities in nats, and of the first loss in units of R."""
    errors = engine - other
    margins = BETA1 * (errors[1::SAMPLES] - errors[0::SAMPLES])
    losses = -logsigmoid(margins) - math.log(2)
    return {
        "mean_abs": float(errors.abs().mean()),
        "max_abs": float(errors.abs().max()),
        "mean": float(errors.mean()),
        "first_loss_error_mean": float(losses.mean()),
        "first_loss_error_mean_abs": float(losses.abs().mean()),
        "first_loss_error_max_abs": float(losses.abs().max()),
    }


def measure(model: Path, prompts: int, dtype: str) -> dict[str, Any]:
    """Compare the engine in `dtype` with torch."""
    requests, responses, shared = sample(model, prompts, dtype)
    engine = torch.tensor([response.logp for response in responses], dtype=torch.float64)
    autocast, float32 = (torch_logps(model, requests, responses, autocast) for autocast in (True, False))
    return {
        "responses": len(responses),
        "mean_tokens": statistics.mean(len(response.token_ids) for response in responses),
        "mean_prompt_tokens": statistics.mean(len(request.prompt_token_ids) for request in requests),
        "mean_logp": float(engine.mean()),
        "beta1": BETA1,
        f"engine {dtype} against torch bfloat16 autocast": compare(engine, autocast),
        f"engine {dtype} against torch float32": compare(engine, float32),
        "torch bfloat16 autocast against torch float32": compare(autocast, float32),
        "prefix_share_of_later_samples": shared,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.prompts, arguments.dtype)
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
