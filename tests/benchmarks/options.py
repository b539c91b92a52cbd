"""The effect of the options beyond the paper: two iterations with each, beside two without.

    python -m tests.benchmarks.options --json FILE

All runs have the same prompts, reward model and first responses; a run has an iteration 0 of its own if the option
changes it. Reported are the seconds of training in iteration 1, the pairs that it trained on, and the mean reward of
the last policy's responses to prompts that no run trained on (`tests.benchmarks.iteration`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from optune_core.config import load_config
from optune_core.storage import ArtifactStore, Ledger, open_objects
from tests.benchmarks.iteration import CONFIG, WORK, judge, optune

OPTIONS = {
    "none": [],  # the baseline
    "min_reward_gap": ["training.min_reward_gap=2.0"],
    "lora": ["training.lora={r: 16, alpha: 32}", "training.learning_rate=5.0e-4"],
}


def measure(store: str, option: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Measure both iterations with an option."""
    run = f"{option.replace('_', '-')}-{seed}"
    given = [*WORK, *OPTIONS[option], f"seed={seed}", "iterations=2", *overrides]
    seconds = optune(store, run, given)
    artifacts = ArtifactStore(open_objects(store))
    record = Ledger(artifacts.objects, run).iteration(1)
    assert record is not None
    policy = artifacts.fetch(record["artifacts"]["policy"]) / "model"
    return {
        "seconds": seconds,
        "train_seconds": record["timing"]["train"],
        "pairs": record["metrics"]["policy"]["pairs"],
        "reward": judge(store, run, str(policy), load_config(CONFIG, given)),
    }


def main() -> None:
    """Measure all options in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("overrides", nargs="*", help=f"section.key=value, on top of {CONFIG}")
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "configs.demo.prepare"], check=True, capture_output=True)
    turns: dict[str, list[dict[str, Any]]] = {option: [] for option in options.options}
    with tempfile.TemporaryDirectory() as store:
        for seed in range(options.seeds):
            optune(store, f"base-{seed}", [*WORK, f"seed={seed}", "iterations=1", *options.overrides])
            for option, made in turns.items():
                made.append(measure(store, option, seed, options.overrides))
                print(f"  {option:16} {made[-1]}", file=sys.stderr, flush=True)
    print(f"{'':16} {'s':>6} {'train, s':>9} {'pairs':>6} {'reward':>7}")
    for option, made in turns.items():
        seconds, train, pairs, reward = (
            median(turn[name] for turn in made) for name in ("seconds", "train_seconds", "pairs", "reward")
        )
        print(f"{option:16} {seconds:>6.0f} {train:>9.1f} {pairs:>6.0f} {reward:>7.2f}")
    if options.json:
        options.json.write_text(json.dumps(turns, indent=2))


if __name__ == "__main__":
    main()
