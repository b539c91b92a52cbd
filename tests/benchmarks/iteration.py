"""One whole iteration: ours at ρ = 0.5, 0.7 and 1, and the stack that people script today (see `peer`).

    python -m tests.benchmarks.iteration --json FILE

Iteration 0 is made once and shared, as the paper shares it. Then each contender makes iteration 1 from the same
policy and replay set, in turns. A contender's time is from the start of its command until its policy is written,
start-up of Python, Prefect and vLLM included. Ours also answers and scores the held-out prompts with the policy that it
starts from; judging the policy that is made counts for nobody. Its held-out reward stands beside the time: few prompts,
so read it as "not worse", not as a ranking.
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

from optune_core.config import load_config
from optune_core.storage import ArtifactStore, Ledger, Ref, open_objects

CONFIG = "configs/demo.yaml"
RHOS = (1.0, 0.7, 0.5)


def optune(store: str, run: str, overrides: list[str]) -> float:
    """Seconds that `optune run` takes."""
    program = str(Path(sys.executable).with_name("optune"))
    return timed([program, "run", CONFIG, *overrides, "--store", store, "--run", run])


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return time.perf_counter() - started


def ours(store: str, rho: float, repetition: int, overrides: list[str]) -> dict[str, Any]:
    """Iteration 1 at ρ, made anew."""
    run = f"rho-{rho:g}-{repetition}".replace(".", "-")
    # A hair less than ρ selects the same prompts, and is another key: nothing of an earlier turn is found.
    nudged = rho - repetition * 1e-9 - 1e-9
    started = time.time()
    optune(store, run, [*overrides, "iterations=2", f"selection.rho={nudged!r}"])
    artifacts = ArtifactStore(open_objects(store))
    ledger = Ledger(artifacts.objects, run)
    record, held_out = ledger.iteration(1), ledger.evaluation(2)
    assert record is not None and held_out is not None
    seconds = artifacts.manifest(Ref.from_json(record["artifacts"]["policy"])).committed_at - started
    return {
        "seconds": seconds,
        "stages": record["timing"],
        "held_out_reward": held_out["metrics"]["proxy"],
        "regenerated": record["metrics"]["replay"]["status"]["regenerated"],
    }


def peer(store: str, base: str, repetition: int, overrides: list[str]) -> dict[str, Any]:
    """The same iteration by the peer stack, from the policy that iteration 0 of run `base` made."""
    artifacts = ArtifactStore(open_objects(store))
    config = load_config(CONFIG, overrides)
    ledger = Ledger(artifacts.objects, base)
    record, inputs = ledger.iteration(0), ledger.inputs()
    assert record is not None
    prompts = artifacts.fetch(Ref.from_json(inputs["prompts"]))
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "policy": str(artifacts.fetch(Ref.from_json(record["artifacts"]["policy"])) / "model"),
            "reward_model": str(artifacts.fetch(Ref.from_json(inputs["reward"]["model"])) / "model"),
            "prompts": str(prompts / "train.parquet"),
            "held_out": str(prompts / "held_out.parquet"),
            "samples": config.generation.samples,
            "max_tokens": config.generation.max_tokens,
            "max_model_len": config.prompts.max_tokens + config.generation.max_tokens,
            "top_p": config.generation.top_p,
            "seed": repetition,
            "batch_size": config.training.batch_size,
            "learning_rate": config.training.learning_rate,
            "beta": config.training.beta1,
            "folder": folder,
        }
        (Path(folder) / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "tests.benchmarks.peer"]
        stages = {step: timed([*command, step, f"{folder}/job.json"]) for step in ("generate", "train")}
        timed([*command, "judge", f"{folder}/job.json"])
        judged = json.loads((Path(folder) / "judged.json").read_text())
    return {"seconds": sum(stages.values()), "stages": stages, "held_out_reward": judged["reward"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--store", help="folder to work in, kept; default: a temporary one")
    parser.add_argument("overrides", nargs="*", help=f"section.key=value, on top of {CONFIG}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.store or folder, options)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def measure(store: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders in turns."""
    subprocess.run([sys.executable, "-m", "configs.demo.prepare"], check=True, capture_output=True)
    print("iteration 0, once", file=sys.stderr, flush=True)
    optune(store, "base", [*options.overrides, "iterations=1"])
    runs: dict[str, list[dict[str, Any]]] = {f"rho={rho:g}": [] for rho in RHOS} | {"peer": []}
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
        results[f"speedup_over_rho=1/{name}"] = {
            "median": median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    for rho in RHOS:
        name = f"rho={rho:g}"
        ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(runs["peer"], runs[name], strict=True)]
        results[f"ratio_vs_peer/{name}"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return results


def table(results: dict[str, Any]) -> str:
    """The measurements, for people."""
    lines = [f"{'':8} {'s':>6} {'held-out reward':>16}   stages, s"]
    for name, turns in results["runs"].items():
        stages = {stage: f"{median(t['stages'][stage] for t in turns):.0f}" for stage in turns[0]["stages"]}
        lines.append(
            f"{name:8} {median(t['seconds'] for t in turns):>6.0f} "
            f"{median(t['held_out_reward'] for t in turns):>16.2f}   {stages}"
        )
    for name, value in results.items():
        if name != "runs":
            lines.append(f"{name}: {value['median']:.2f} [{value['lowest']:.2f}, {value['highest']:.2f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
