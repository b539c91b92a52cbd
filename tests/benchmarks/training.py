"""Speed of the project's trainer against TRL's `DPOTrainer`: the same pairs in the same order, from the same weights.

    python -m tests.benchmarks.training --json FILE

`trl_shipped` has TRL's defaults. `trl_best` is the fastest of a few configurations, which are tried on each mix first;
it also gets the project's setting for the memory of the C library, which TRL does not have. All use the same model,
precision and effective batch, and their reference pass is counted. Contenders take turns, each in a process of its own.
Neither loading nor the first optimizer step, which is the warm-up, is counted. Ratios are medians over repetitions of
(theirs / ours) in the same turn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.spread import as_text, spread

MODEL = ".optune/models/SmolLM2-135M-Instruct"
STEPS = 3
BATCH = {"short": 16, "ultrachat": 4, "long": 2}  # about as many tokens a step
CANDIDATES = [
    {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "per_device_train_batch_size": each}
    for each in (1, 2)
]


def measure(contender: str, mix: str, options: argparse.Namespace, trl: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Measure one run in a process of its own."""
    job = {
        "contender": contender,
        "keep_freed_memory": contender == "ours" or bool(trl),
        "mix": mix,
        "pairs": pairs,
        "options": trl,
        "model": options.model,
        "batch_size": BATCH[mix],
        "micro_batch_tokens": options.micro_batch_tokens,
        "precision": options.precision,
        "device": options.device,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.contenders", json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{contender} on {mix!r} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {contender:12} {mix:10} {result['seconds_per_pair']:.3f} s a pair", file=sys.stderr, flush=True)
    return result


def compare(mix: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders on one mix."""
    pairs = BATCH[mix] * STEPS
    tried = [measure("trl", mix, options, each, pairs) for each in CANDIDATES]
    best, _ = min(zip(CANDIDATES, tried, strict=True), key=lambda each: each[1]["seconds_per_pair"])
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl_shipped": [], "trl_best": []}
    for _ in range(options.repetitions):
        for contender, settings in (("ours", {}), ("trl_shipped", {}), ("trl_best", best)):
            runs[contender].append(measure("ours" if contender == "ours" else "trl", mix, options, settings, pairs))
    summary: dict[str, Any] = {"pairs": pairs, "trl_best_settings": best}
    for contender, results in runs.items():
        summary[contender] = {
            name: spread(values)
            for name in ("seconds_per_pair", "tokens_per_second", "peak_mib")
            for values in [[result[name] for result in results]]
        } | {"losses": results[0]["losses"]}
    for theirs in ("trl_shipped", "trl_best"):
        ratios = [
            other["seconds_per_pair"] / mine["seconds_per_pair"]
            for other, mine in zip(runs[theirs], runs["ours"], strict=True)
        ]
        summary[f"ratio_vs_{theirs}"] = spread(ratios)
    summary["largest_loss_difference"] = max(
        abs(a - b) for a, b in zip(runs["ours"][0]["losses"], runs["trl_best"][0]["losses"], strict=True)
    )
    return summary


def table(mixes: dict[str, Any]) -> str:
    """Return the measurements as a table."""
    lines = [f"{'mix':10} {'contender':12} {'s a pair':>20} {'tokens/s':>9} {'peak MiB':>9} {'ratio':>20}"]
    for mix, summary in mixes.items():
        for contender in ("ours", "trl_shipped", "trl_best"):
            seconds, ratio = summary[contender]["seconds_per_pair"], summary.get(f"ratio_vs_{contender}")
            lines.append(
                f"{mix:10} {contender:12} {as_text(seconds, 3):>20} "
                f"{summary[contender]['tokens_per_second']['median']:>9.0f} "
                f"{summary[contender]['peak_mib']['median']:>9.0f} {as_text(ratio, 1) + ' x' if ratio else '':>20}"
            )
        lines.append(
            f"{'':10} losses differ by {summary['largest_loss_difference']:.4f} at most; "
            f"trl_best: {summary['trl_best_settings']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all mixes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--mixes", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--model", default=MODEL, help="model folder; default: as made by `python -m configs.demo.prepare`"
    )
    options = parser.parse_args()
    if not Path(options.model).is_dir():
        raise SystemExit(
            f"--model {options.model}: there is no such folder; make it with `python -m configs.demo.prepare`"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    mixes = {mix: compare(mix, options) for mix in options.mixes}
    # The geometric mean of the medians of all mixes, since no mix matters more than another.
    overall = {
        name: math.prod(summary[name]["median"] for summary in mixes.values()) ** (1 / len(mixes))
        for name in ("ratio_vs_trl_shipped", "ratio_vs_trl_best")
    }
    print(table(mixes))
    for name, value in overall.items():
        print(f"{name}: {value:.2f}")
    if options.json:
        machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "device": options.device}
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps(overall | {"mixes": mixes, "settings": settings, **machine}, indent=2))


if __name__ == "__main__":
    main()
