"""Rate of streaming generation against repeatable generation: the same work in turns, each in a child process.

    python -m tests.benchmarks.generation --json FILE

The rate is in tokens a second, from the first request to the last commit, without the start of the engine. The two
modes have different batches and so sample different tokens, so that rates are compared and not times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from optune_core.generation.section import Sampling
from optune_core.generation.vllm import VllmEngine
from optune_core.process.progress import silent
from optune_core.stages import responses
from optune_core.stages.launch import run_stage
from optune_core.storage import ArtifactStore, Ref, open_objects
from tests.benchmarks.policies import MODEL, prompt_table, store_inputs
from tests.benchmarks.spread import as_text, spread

PROMPTS, SAMPLES, MAX_TOKENS, SHARD_SIZE, MAX_NUM_SEQS = 96, 2, 96, 16, 32


def once(store: ArtifactStore, policy: Ref, prompts: Ref, *, repeatable: bool, seed: int) -> dict[str, float]:
    """Generate everything with a seed that no earlier turn used."""
    engine = VllmEngine(
        max_num_seqs=MAX_NUM_SEQS, enforce_eager=True, gpu_memory_utilization=0.5, repeatable=repeatable
    )
    spec = responses.Spec(
        sampling=Sampling(max_tokens=MAX_TOKENS, shard_size=SHARD_SIZE, engine=engine),
        max_prompt_tokens=256,
        seed=seed,
        iteration=0,
        policy=policy,
        jobs=[responses.GenerationJob(prompts=prompts, file="prompts.parquet", rows=PROMPTS, samples=SAMPLES)],
    )
    made = run_stage(store, "responses", spec, silent, lambda line: None)
    seconds = sum(manifest.timing["seconds"] for manifest in made)
    tokens = sum(manifest.metrics["tokens"] for manifest in made)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}


def measure(model: Path, rounds: int) -> dict[str, Any]:
    """Measure both modes in turns."""
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(open_objects(f"{folder}/store"))
        policy, prompts = store_inputs(store, model, prompt_table(model, PROMPTS))
        runs: dict[str, list[dict[str, float]]] = {"repeatable": [], "streaming": []}
        for seed in range(rounds):
            for mode in list(runs) if seed % 2 == 0 else reversed(runs):
                runs[mode].append(once(store, policy, prompts, repeatable=mode == "repeatable", seed=seed))
                print(f"round {seed} {mode:10} {runs[mode][-1]}", flush=True)
    rates = {mode: [run["tokens_per_second"] for run in each] for mode, each in runs.items()}
    ratios = [fast / slow for fast, slow in zip(rates["streaming"], rates["repeatable"], strict=True)]
    return {
        "work": {"prompts": PROMPTS, "samples": SAMPLES, "max_tokens": MAX_TOKENS, "shard_size": SHARD_SIZE}
        | {"max_num_seqs": MAX_NUM_SEQS, "model": model.name, "rounds": rounds},
        "tokens_per_second": {mode: median(each) for mode, each in rates.items()},
        "ratio_streaming_vs_repeatable": spread(ratios),
        "runs": runs,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.rounds)
    for mode, rate in found["tokens_per_second"].items():
        print(f"{mode:12} {rate:8.1f} tokens/s")
    print(f"streaming / repeatable: {as_text(found['ratio_streaming_vs_repeatable'], 3)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
