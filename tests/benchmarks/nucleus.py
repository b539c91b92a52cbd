"""Rate of vLLM on a CPU with the project's nucleus sampling and with its own: the same work in turns, in one engine.

    python -m tests.benchmarks.nucleus --json FILE

All of generation is timed, so the ratio is what a run gains. Both sample from the same nucleus except for the order of
equals at its edge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from optune_core.generation import vllm_nucleus
from optune_core.generation.section import Generation
from optune_core.generation.vllm import VllmEngine, VllmSampler
from tests.benchmarks.policies import MODEL, prompt_table, requests_for
from tests.benchmarks.spread import as_text, spread

PROMPTS, SAMPLES, MAX_TOKENS, TOP_P = 60, 4, 64, 0.9


def once(engine: VllmSampler, prompts: list[list[int]], seed: int) -> float:
    """Return tokens a second."""
    requests = requests_for(prompts, SAMPLES, lambda row, k: seed + row * SAMPLES + k)
    started = time.perf_counter()
    tokens = sum(len(response.token_ids) for response in engine.generate(requests))
    return tokens / (time.perf_counter() - started)


def measure(model: Path, rounds: int) -> dict[str, Any]:
    """Measure both kinds of nucleus sampling in turns."""
    config = VllmEngine(enforce_eager=True)
    settings = Generation(samples=SAMPLES, max_tokens=MAX_TOKENS, top_p=TOP_P, engine=config)
    engine = VllmSampler(settings, config, model, 256 + MAX_TOKENS)
    prompts = prompt_table(model, PROMPTS)["prompt_token_ids"].to_pylist()
    once(engine, prompts, seed=-1_000_000)  # warm-up
    rates: dict[str, list[float]] = {"ours": [], "vllm": []}
    for turn in range(rounds):
        rates["ours"].append(once(engine, prompts, turn * 1000))
        with (
            patch.object(engine, "_top_p", TOP_P),
            patch.object(vllm_nucleus, "keep_nucleus", lambda logits, _: logits),
        ):
            rates["vllm"].append(once(engine, prompts, turn * 1000))
        print({name: round(values[-1]) for name, values in rates.items()}, flush=True)
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["vllm"], strict=True)]
    return {
        "work": {"prompts": PROMPTS, "samples": SAMPLES, "max_tokens": MAX_TOKENS, "top_p": TOP_P, "rounds": rounds},
        "tokens_per_second": {name: median(values) for name, values in rates.items()},
        "ratio": spread(ratios),
    }


def main() -> None:
    """Measure and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="model folder; default: as made by `python -m configs.demo.prepare`"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = measure(options.model, options.rounds)
    print("tokens a second: ours {ours:.0f}, vLLM's own {vllm:.0f}".format(**results["tokens_per_second"]))
    print(f"ratio: {as_text(results['ratio'])}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
