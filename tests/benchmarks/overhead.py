"""The cost of flow, store and child processes: an iteration beside a bare script with the same engines.

    python -m tests.benchmarks.overhead --json FILE

Both make iteration 1 of one run: `optune run` from the start of its command to its end, Prefect's temporary server
included, and `bare` in a process of its own. The difference does not grow with the work, except for the commits of
shards, so it is reported in seconds too, and as a share of the iteration that `optune plan` predicts for the paper's
setting. `nothing to do` is the same command on a finished run: the time that a resumption takes before it computes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from optune_core.config import load_config
from optune_core.storage import ArtifactStore, Ledger, open_objects
from tests.benchmarks.iteration import CONFIG, optune, timed
from tests.benchmarks.spread import spread

OVERRIDES = [
    "reward={type: function, function: 'configs.demo.gold:helpful_and_complete'}",
    "held_out.gold=null",
    "prompts.held_out=0",
    "health.max_dropped=1",
]
PAPER_SECONDS = 1.35 * 3600
"""Predicted seconds of an iteration of `configs/zephyr-7b-full.yaml` on 8 A100 with 8 engines (`optune plan`)."""


def bare(store: str, run: str, overrides: list[str]) -> float:
    """Return the seconds of the same iteration in a bare script."""
    artifacts = ArtifactStore(open_objects(store))
    record = Ledger(artifacts.objects, run).iteration(1)
    assert record is not None
    made = {name: record["artifacts"][name] for name in ("selection", "replay", "started_from")}
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "config": load_config(CONFIG, overrides).model_dump(mode="json"),
            "iteration": 1,
            "policy": str(artifacts.fetch(made["started_from"])),
            "selection": str(artifacts.fetch(made["selection"]) / "selection.parquet"),
            "replay": str(artifacts.fetch(made["replay"]) / "replay.parquet"),
            "folder": folder,
        }
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        return timed([sys.executable, "-m", "tests.benchmarks.bare", str(file)])


def main() -> None:
    """Measure all in turns and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    timed([sys.executable, "-m", "configs.demo.prepare"])
    seconds: dict[str, list[float]] = {"optune": [], "bare": [], "nothing to do": []}
    with tempfile.TemporaryDirectory() as store:
        for repetition in range(options.repetitions):
            overrides, run = [*OVERRIDES, f"seed={repetition}"], f"overhead-{repetition}"
            optune(store, run, [*overrides, "iterations=1"])
            seconds["optune"].append(optune(store, run, [*overrides, "iterations=2"]))
            seconds["bare"].append(bare(store, run, overrides))
            seconds["nothing to do"].append(optune(store, run, [*overrides, "iterations=2"]))
            print({name: round(values[-1], 1) for name, values in seconds.items()}, file=sys.stderr, flush=True)
    extra = [ours - script for ours, script in zip(seconds["optune"], seconds["bare"], strict=True)]
    results: dict[str, Any] = {name: spread(values) for name, values in (seconds | {"extra": extra}).items()}
    results["share_of_the_papers_iteration"] = median(extra) / PAPER_SECONDS
    for name, value in results.items():
        print(name, value)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
