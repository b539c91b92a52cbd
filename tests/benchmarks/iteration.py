"""One complete iteration: ours at ρ = 0.5, 0.7 and 1, and the stack that people script today (see `peer`).

    python -m tests.benchmarks.iteration --json FILE

Iteration 0 is made once and shared, as the paper shares it. Then each contender makes iteration 1 from the same
policy and replay set, in turns. A contender's time is from the start of its command until its policy is written,
start-up of Python, Prefect and vLLM included. Nobody evaluates within that time; afterwards all policies that were
made answer the same prompts, none of which was trained on, and the same reward model scores them. That mean is
shown with the time: the prompts are few, so read it as "not worse", not as a ranking.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from optune_core.config import OptuneConfig, load_config
from optune_core.storage import ArtifactStore, Ledger, open_objects
from tests.benchmarks.spread import as_text, spread

CONFIG = "configs/demo.yaml"
PROMPTS = "configs/demo/prompts.jsonl"
WORK = ["prompts.sample=120", "prompts.held_out=0", "held_out.gold=null"]
RHOS = (1.0, 0.7, 0.5)


def optune(store: str, run: str, overrides: list[str]) -> float:
    """Return the seconds that `optune run` takes."""
    program = str(Path(sys.executable).with_name("optune"))
    return timed([program, "run", CONFIG, *overrides, "--store", store, "--run", run])


def timed(command: list[str]) -> float:
    """Run a command and return its seconds; end the program if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return time.perf_counter() - started


def ours(store: str, rho: float, repetition: int, overrides: list[str]) -> dict[str, Any]:
    """Make iteration 1 at ρ anew."""
    run = f"rho-{rho:g}-{repetition}".replace(".", "-")
    # A value slightly below ρ selects the same prompts and has another key, so that no earlier artifact is found.
    nudged = rho - repetition * 1e-9 - 1e-9
    started = time.time()
    optune(store, run, [*overrides, "iterations=2", f"selection.rho={nudged!r}"])
    artifacts = ArtifactStore(open_objects(store))
    record = Ledger(artifacts.objects, run).iteration(1)
    assert record is not None
    policy = record["artifacts"]["policy"]
    seconds = artifacts.manifest(policy).committed_at - started
    judged = judge(store, run, str(artifacts.fetch(policy) / "model"), load_config(CONFIG, overrides))
    return {
        "seconds": seconds,
        "stages": record["timing"],
        "reward": judged,
        "regenerated": record["metrics"]["replay"]["status"]["regenerated"],
    }


def peer(store: str, base: str, repetition: int, overrides: list[str]) -> dict[str, Any]:
    """Make the same iteration with the peer stack, from the policy of iteration 0 of run `base`."""
    artifacts = ArtifactStore(open_objects(store))
    config = load_config(CONFIG, overrides)
    record = Ledger(artifacts.objects, base).iteration(0)
    assert record is not None
    with tempfile.TemporaryDirectory() as folder:
        job = setting(store, base, config) | {
            "policy": str(artifacts.fetch(record["artifacts"]["policy"]) / "model"),
            "samples": config.generation.samples,
            "seed": repetition,
            "batch_size": config.training.batch_size,
            "learning_rate": config.training.learning_rate,
            "beta": config.training.loss.implicit_beta,
            "folder": folder,
        }
        (Path(folder) / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "tests.benchmarks.peer"]
        stages = {step: timed([*command, step, f"{folder}/job.json"]) for step in ("generate", "train")}
        judged = judge(store, base, f"{folder}/policy", config)
    return {"seconds": sum(stages.values()), "stages": stages, "reward": judged}


def setting(store: str, run: str, config: OptuneConfig) -> dict[str, Any]:
    """Return what every job of `peer` takes from the run: prompts, reward model and sampling."""
    artifacts = ArtifactStore(open_objects(store))
    made = Ledger(artifacts.objects, run).inputs()
    return {
        "reward_model": str(artifacts.fetch(made["reward"]["model"]) / "model"),
        "prompts": str(artifacts.fetch(made["prompts"]) / "train.parquet"),
        "max_tokens": config.generation.max_tokens,
        "max_model_len": config.prompts.max_tokens + config.generation.max_tokens,
        "top_p": config.generation.top_p,
    }


def judge(store: str, run: str, policy: str, config: OptuneConfig) -> float:
    """Return the mean reward of a policy's answers to prompts of the source that the run does not train on."""
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = setting(store, run, config) | {"policy": policy, "folder": folder}
        known = set(pq.read_table(job["prompts"], columns=["prompt"])["prompt"].to_pylist())
        lines = [json.loads(line) for line in Path(PROMPTS).read_text().splitlines()]
        others = [[{"role": "user", "content": each["prompt"]}] for each in lines if each["prompt"] not in known]
        job["held_out"] = f"{folder}/held_out.parquet"
        pq.write_table(pa.table({"messages": others}), job["held_out"])
        (Path(folder) / "job.json").write_text(json.dumps(job))
        timed([sys.executable, "-m", "tests.benchmarks.peer", "judge", f"{folder}/job.json"])
        reward: float = json.loads((Path(folder) / "judged.json").read_text())["reward"]
        return reward


def main() -> None:
    """Measure all contenders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--store", help="folder for the store, which is kept; default: a temporary one")
    parser.add_argument("overrides", nargs="*", help=f"section.key=value, on top of {CONFIG}")
    options = parser.parse_args()
    options.overrides = [*WORK, *options.overrides]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.store or folder, options)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def measure(store: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in turns."""
    subprocess.run([sys.executable, "-m", "configs.demo.prepare"], check=True, capture_output=True)
    print("iteration 0, once", file=sys.stderr, flush=True)
    optune(store, "base", [*options.overrides, "iterations=1"])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*(f"rho={rho:g}" for rho in RHOS), "peer")}
    for repetition in range(options.repetitions):
        for name in runs:
            turn = (
                peer(store, "base", repetition, options.overrides)
                if name == "peer"
                else ours(store, float(name.removeprefix("rho=")), repetition, options.overrides)
            )
            runs[name].append(turn)
            print(f"  {name:8} {turn['seconds']:.0f} s  {turn['stages']}", file=sys.stderr, flush=True)
    results: dict[str, Any] = {"runs": runs}
    full = [turn["seconds"] for turn in runs["rho=1"]]
    for name in ("rho=0.7", "rho=0.5", "peer"):
        ratios = [other / turn["seconds"] for other, turn in zip(full, runs[name], strict=True)]
        results[f"speedup_over_rho=1/{name}"] = spread(ratios)
    for rho in RHOS:
        name = f"rho={rho:g}"
        ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(runs["peer"], runs[name], strict=True)]
        results[f"ratio_vs_peer/{name}"] = spread(ratios)
    return results


def table(results: dict[str, Any]) -> str:
    """Return the measurements as a table."""
    lines = [f"{'':8} {'s':>6} {'reward':>8}   stages, s"]
    for name, turns in results["runs"].items():
        stages = {stage: f"{median(t['stages'][stage] for t in turns):.0f}" for stage in turns[0]["stages"]}
        seconds, reward = (median(turn[each] for turn in turns) for each in ("seconds", "reward"))
        lines.append(f"{name:8} {seconds:>6.0f} {reward:>8.2f}   {stages}")
    for name, value in results.items():
        if name != "runs":
            lines.append(f"{name}: {as_text(value)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
