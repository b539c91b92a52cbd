"""The cost model against measurements: Table 1 of the paper, and each iteration of a run from its others.

python -m tests.benchmarks.projection --json FILE [--store URL --run NAME --device cpu]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from optune_core.config import load_config
from optune_core.generation.transformers import TransformersEngine
from optune_core.plan import STAGES, fit_device, named_device, project, stage_seconds, workload_of
from optune_core.plan.fit import measured_iterations
from optune_core.statistics import speedup_bound
from optune_core.storage import ArtifactStore, open_objects

CONFIG = Path(__file__).parents[2] / "configs" / "zephyr-7b-full.yaml"
TABLE_1 = {"generation": 0.718, "rewarding": 0.001, "training": 0.281}
"""Shares of the time of full online DPO in the paper (8 × A100 80 GB, TRL)."""
SPEEDUPS = {0.7: 1.27, 0.5: 1.56}
"""ρ → total speed-up in the paper."""
PROMPT_TOKENS, RESPONSE_TOKENS = 200.0, 350.0
"""Assumed means; the paper gives only the maxima (512 each)."""
STATIC_BATCH = 12
"""Rows of a batch of `generate` on each GPU, the only constant that is fitted to Table 1. It represents all that the
paper leaves open about its generation."""


def paper_shares(device: str = "a100-80gb") -> dict[str, dict[str, float]]:
    """Return the shares of generation, rewarding and training at ρ = 1 on eight devices, of three stacks.

    Two are ours: with one engine and one reward model, and with one of each a device. The third is like the paper's:
    `generate` in static batches on each device, and padded training with the prompt twice and a reference pass in
    each step.
    """
    config = load_config(str(CONFIG), [])
    eight = workload_of(config, devices=8, prompt_tokens=PROMPT_TOKENS, response_tokens=RESPONSE_TOKENS)
    static = TransformersEngine(batch_size=STATIC_BATCH)
    columns = {
        "ours, 1 engine": replace(eight, engines=1, scorers=1),
        "ours, 8 engines": eight,
        "paper's stack": replace(eight, engine=static, layout="padded"),
    }
    shares = {}
    for name, work in columns.items():
        full = project(config, work, named_device(device)).full
        parts = {"generation": full["generate"], "rewarding": full["score"], "training": full["train"]}
        shares[name] = {part: seconds / sum(parts.values()) for part, seconds in parts.items()}
        shares[name]["hours"] = sum(parts.values()) / 3600
    return shares


def paper_speedups(share: float) -> dict[str, dict[float, float]]:
    """Return ρ → speed-up by the formula at g = `share`, in three readings of "total".

    The readings are one iteration with ρ, three iterations of which the first is full, and a full first iteration that
    is shared with three more.
    """

    def over(full: int, later: int, rho: float) -> float:
        return (full + later) / (full + later / speedup_bound(share, rho))

    readings = {"an iteration": (0, 1), "3, the first full": (1, 2), "1 full and 3 more": (1, 3)}
    return {name: {rho: over(*counts, rho) for rho in SPEEDUPS} for name, counts in readings.items()}


def left_out(store_url: str, run: str, device: str, devices: int) -> list[dict[str, Any]]:
    """Return each iteration of a run as measured, and as predicted with the rates of the others."""
    iterations = measured_iterations(ArtifactStore(open_objects(store_url)), run, devices=devices)
    rows = []
    for index, each in enumerate(iterations):
        fitted, _ = fit_device(named_device(device), [*iterations[:index], *iterations[index + 1 :]])
        predicted = stage_seconds(each.work, fitted, each.selected)
        rows.append({"iteration": index, "measured": each.seconds, "predicted": predicted})
    return rows


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--store")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--device", default="cpu", help="profile closest to the device of the run")
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()
    columns = paper_shares()
    result: dict[str, Any] = {"table_1": TABLE_1, "shares": columns, "static_batch": STATIC_BATCH}
    print(f"Table 1 (8 × A100, ρ = 1, mean {PROMPT_TOKENS:.0f} + {RESPONSE_TOKENS:.0f} tokens), shares in %")
    print(f"{'':18}" + "".join(f"{part:>12}" for part in TABLE_1) + f"{'h/iteration':>13}")
    print(f"{'Table 1':18}" + "".join(f"{100 * share:12.1f}" for share in TABLE_1.values()))
    for name, shares in columns.items():
        print(f"{name:18}" + "".join(f"{100 * shares[part]:12.1f}" for part in TABLE_1) + f"{shares['hours']:13.2f}")

    reported = TABLE_1["generation"] + TABLE_1["rewarding"]
    modelled = 1.0 - columns["paper's stack"]["training"]
    result["speedups"] = {"reported": SPEEDUPS}
    print("\nspeed-up            " + "".join(f"   ρ = {rho}" for rho in SPEEDUPS))
    print(f"{'reported':20}" + "".join(f"{value:10.3f}" for value in SPEEDUPS.values()))
    for source, share in (("Table 1's g", reported), ("paper's stack's g", modelled)):
        result["speedups"][source] = paper_speedups(share)
        for reading, values in paper_speedups(share).items():
            print(f"{reading:20}" + "".join(f"{value:10.3f}" for value in values.values()) + f"   ({source})")

    if arguments.store:
        result["run"] = left_out(arguments.store, arguments.run, arguments.device, arguments.devices)
        print(f"\nrun {arguments.run}: seconds measured, and predicted from the other iterations")
        for row in result["run"]:
            cells = [f"{stage} {row['measured'][stage]:.1f} / {row['predicted'][stage]:.1f}" for stage in STAGES]
            totals = f"{sum(row['measured'].values()):.1f} / {sum(row['predicted'].values()):.1f}"
            print(f"  {row['iteration']}: {'; '.join(cells)}; iteration {totals}")
    Path(arguments.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
