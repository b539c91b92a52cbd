"""Numbers of docs/reproduction.md from the runs of a sweep, as far as they are committed.

    python -m configs.reproduction.claims [SWEEP.yaml] [--store URL] [--null RUN]

Differences are between cells of equal seed, and so of equal held-out prompts. Each line shows the mean over seeds and
prompts, a 95 % bootstrap interval over the prompts of each seed, the mean of each seed, and the 95 % t-interval of
these means. The t-interval is the more informative one: the bootstrap does not include the variation between training
runs.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import scipy.stats
import torch

from optune_core.config import OptuneConfig
from optune_core.data.schemas import COMPARISONS, REPLAY, SCORES, only, read_table
from optune_core.data.shards import SCORES_FILE, read_shards
from optune_core.losses.equations import reward_weights
from optune_core.reports.analysis import analyse
from optune_core.statistics import reward_per_prompt
from optune_core.storage import ArtifactStore, Ledger, Ref, open_objects
from optune_core.sweep.grid import load_sweep
from optune_core.sweep.results import loss_label, selection_label

RESAMPLES = 5000
POINTS = {"win": 100.0, "tie": 0.0, "lose": -100.0}
FULL = "all, ρ = 1"

Key = tuple[str, str, int]
"""Labels of selection and loss, and seed of a cell."""
Values = dict[str, float]
"""Values by prompt id."""


def held_out(store: ArtifactStore, run: str, t: int) -> dict[str, Values]:
    """Return values of π_t on each held-out prompt, by metric: the proxy's reward, the judge's reward, and the win
    score (100 for a win, 0 for a tie, -100 for a loss)."""
    ledger = Ledger(store.objects, run)
    values: dict[str, Values] = {}
    if (record := ledger.held_out(t)) is not None:
        values["proxy"] = reward_per_prompt(read_shards(store, _refs(record["proxy"]), SCORES_FILE, SCORES))
    if (compared := ledger.evaluation("judge", t)) is not None:
        shards = _refs(compared["artifacts"]["comparisons"])
        rows = read_shards(store, shards, "comparisons.parquet", COMPARISONS).to_pylist()
        values["judge"] = {row["prompt_id"]: row["first_policy_score"] for row in rows}
        values["win score"] = {row["prompt_id"]: POINTS[row["outcome"]] for row in rows}
        if t == 1:
            values["judge at 0"] = {row["prompt_id"]: row["first_baseline_score"] for row in rows}
    return values


def _refs(shards: list[dict[str, str]]) -> list[Ref]:
    return shards


def difference(pairs: Iterable[tuple[int, Values, Values]]) -> str:
    """Format the mean of second minus first, with its intervals.

    Args:
        pairs: (seed, first, second) of each pair of cells.
    """
    found: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed, one, other in pairs:
        for prompt in one.keys() & other.keys():
            found[seed][prompt].append(other[prompt] - one[prompt])
    seeds = [np.array([fmean(several) for _, several in sorted(prompts.items())]) for prompts in found.values()]
    draw = np.random.default_rng(0)
    means = [
        np.mean([values[draw.integers(len(values), size=len(values))].mean() for values in seeds])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    of_seeds = [float(values.mean()) for values in seeds]
    text = f"{fmean(of_seeds):+.2f} [{low:+.2f}, {high:+.2f}]  seeds {', '.join(f'{mean:+.2f}' for mean in of_seeds)}"
    if len(of_seeds) > 1:
        text += f" ± {scipy.stats.t.ppf(0.975, len(of_seeds) - 1) * stdev(of_seeds) / len(of_seeds) ** 0.5:.2f}"
    return text


def contrast(title: str, reached: dict[Key, list[dict[str, Values]]], pairs: Sequence[tuple[Key, Key]]) -> None:
    """Print second minus first at every iteration, averaged over the pairs of a seed."""
    print(f"\n{title}")
    for metric in ("proxy", "judge", "win score"):
        for t in (1, 2, 3):
            known = [
                (one[2], reached[one][t][metric], reached[other][t][metric])
                for one, other in pairs
                if metric in reached[one][t] and metric in reached[other][t]
            ]
            if any(one != other for _, one, other in known):  # iteration 0 is shared
                print(f"  {metric:<10} π_{t}: {difference(known)}  ({len(known)} pairs of cells)")


def times(facts: dict[Key, Any]) -> None:
    """Print Table 1: the share of each stage in the seconds of full online DPO, by loss."""
    print("\nTime shares of ρ = 1 (generation with engine start; scoring; training; ranking and merging)")
    for loss in sorted({loss for _, loss, _ in facts}):
        seconds: defaultdict[str, float] = defaultdict(float)
        for (selection, its_loss, _), run in facts.items():
            if (selection, its_loss) == (FULL, loss):
                for iteration in run.iterations:
                    for stage, took in iteration.summary["seconds"].items():
                        seconds[stage] += took
        total = sum(seconds.values())
        if total:
            print(
                f"  {loss}: " + ", ".join(f"{stage} {took / total:.1%}" for stage, took in seconds.items()),
                f"of {total:.0f} s",
            )


def gains(name: str, runs: Iterable[Any]) -> None:
    """Print Figure 2: the gain in chosen reward from D_{t-1} to D_t, of the bottom and the top half of the prompts."""
    halves: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        for t, iteration in enumerate(run.iterations):
            if iteration.gains is not None:
                halves[t].append(iteration.gains)
    for t, found in sorted(halves.items()):
        bottom, top = (sum(side) for side in zip(*found, strict=True))
        share = f"bottom half's share {bottom / (bottom + top):.0%}" if bottom + top > 0 else "no gain"
        print(f"  {name}, D_{t - 1} to D_{t}: bottom {bottom:+.1f}, top {top:+.1f}, {share} ({len(found)} runs)")


def gaps(store: ArtifactStore, runs: dict[Key, str]) -> None:
    """Print the mean reward gap r_w - r_l and the mean weight (Eq. 6) of regenerated and of reused pairs."""
    print("\nReward gap (and weight at β₂ = 1) of the pairs trained on, over seeds: regenerated; reused")
    found: defaultdict[tuple[str, str, int], defaultdict[str, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for (selection, loss, _), run in runs.items():
        for t, record in enumerate(Ledger(store.objects, run).iterations()):
            replay = store.fetch(record["artifacts"]["replay"]) / "replay.parquet"
            for row in read_table(replay, only(REPLAY, "status", "chosen_reward", "rejected_reward")).to_pylist():
                if row["status"] in ("regenerated", "reused"):
                    found[selection, loss, t][row["status"]].append((row["chosen_reward"], row["rejected_reward"]))
    for (selection, loss, t), by_status in found.items():
        if "reused" in by_status:
            texts = []
            for status in ("regenerated", "reused"):
                chosen, rejected = torch.tensor(by_status[status], dtype=torch.float64).unbind(dim=1)
                texts.append(f"{(chosen - rejected).mean():.2f} ({reward_weights(chosen, rejected, 1.0).mean():.3f})")
            print(f"  {selection}; {loss}, D_{t}: {'; '.join(texts)}")


def lengths(store: ArtifactStore, runs: dict[Key, str]) -> None:
    """Print the mean tokens of held-out responses and the share cut at the limit, from π_0 to the last policy."""
    print("\nHeld-out response tokens (share cut at the limit), by policy, mean over seeds")
    settings: defaultdict[tuple[str, str], list[list[tuple[float, float]]]] = defaultdict(list)
    for (selection, loss, _), run in runs.items():
        ledger, row = Ledger(store.objects, run), []
        while (record := ledger.held_out(len(row))) is not None:
            shards = [store.manifest(shard).metrics for shard in record["responses"]]
            count, tokens, cut = (sum(shard[name] for shard in shards) for name in ("responses", "tokens", "truncated"))
            row.append((tokens / count, cut / count))
        settings[selection, loss].append(row)
    for (selection, loss), rows in settings.items():
        means = [tuple(fmean(side) for side in zip(*column, strict=True)) for column in zip(*rows, strict=False)]
        print(f"  {selection}; {loss}: " + " → ".join(f"{tokens:.1f} ({cut:.0%})" for tokens, cut in means))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Print the numbers of the reproduction.")
    parser.add_argument("sweep", nargs="?", default="configs/reproduction/sweep.yaml")
    parser.add_argument("--store", default=".optune/store")
    parser.add_argument("--null", help="run with ρ = 1 whose policy does not move: Figure 2 without learning")
    arguments = parser.parse_args()
    store = ArtifactStore(open_objects(arguments.store))
    configs: dict[Key, OptuneConfig] = {
        (selection_label(cell.config), loss_label(cell.config), cell.config.seed): cell.config
        for cell in load_sweep(arguments.sweep).cells
    }
    started = {key: config.name for key, config in configs.items() if Ledger(store.objects, config.name).iterations()}
    reached = {key: [held_out(store, run, t) for t in range(4)] for key, run in started.items()}
    facts = {key: analyse(store, run) for key, run in started.items()}
    complete = sum(len(run.iterations) == configs[key].iterations for key, run in facts.items())
    print(f"{complete} of {len(configs)} cells have all iterations")

    losses = sorted({loss for _, loss, _ in started})
    print("\nChange from π_0, by setting")
    for selection, loss in sorted({key[:2] for key in started}):
        mine = [key for key in started if key[:2] == (selection, loss)]
        for t in (1, 2, 3):
            changes = {
                "proxy": [
                    (key[2], reached[key][0]["proxy"], reached[key][t]["proxy"])
                    for key in mine
                    if "proxy" in reached[key][t]
                ],
                "judge": [
                    (key[2], reached[key][1]["judge at 0"], reached[key][t]["judge"])
                    for key in mine
                    if "judge" in reached[key][t]
                ],
                "win score - 50": [
                    (key[2], dict.fromkeys(wins, 0.0), wins)
                    for key in mine
                    if (wins := reached[key][t].get("win score"))
                ],
            }
            text = "; ".join(f"{name} {difference(found)}" for name, found in changes.items() if found)
            if text:
                print(f"  {selection}; {loss}; π_{t}: {text}")

    def cells(one: str, other: str, of_losses: Sequence[str]) -> list[tuple[Key, Key]]:
        return [
            ((one, loss, seed), (other, loss, seed))
            for selection, loss, seed in started
            if selection == one and loss in of_losses and (other, loss, seed) in started
        ]

    ratios = [rho for rho in ("0.3", "0.5", "0.7") if any(key[0] == f"optune, ρ = {rho}" for key in started)]
    for title, of_losses in [*((f"; {loss}", [loss]) for loss in losses), ("; all losses", losses)]:
        for rho in ratios:
            optune, random = f"optune, ρ = {rho}", f"random, ρ = {rho}"
            contrast(f"OPTune - random, ρ = {rho}{title}", reached, cells(random, optune, of_losses))
            contrast(f"OPTune at ρ = {rho} - full online{title}", reached, cells(FULL, optune, of_losses))
            contrast(f"random at ρ = {rho} - full online{title}", reached, cells(FULL, random, of_losses))
        pairs = [pair for rho in ratios for pair in cells(f"random, ρ = {rho}", f"optune, ρ = {rho}", of_losses)]
        contrast(f"OPTune - random, over all ρ{title}", reached, pairs)
    for loss in losses:
        if loss != "DPO":
            pairs = [
                ((selection, "DPO", seed), (selection, loss, seed)) for selection, its, seed in started if its == loss
            ]
            contrast(f"{loss} - DPO, over all selections", reached, [pair for pair in pairs if pair[0] in started])
    times(facts)
    print("\nGain in chosen reward (Figure 2), ρ = 1")
    for loss in losses:
        gains(loss, [run for key, run in facts.items() if key[:2] == (FULL, loss)])
    if arguments.null:
        gains("policy that does not move", [analyse(store, arguments.null)])
    gaps(store, started)
    lengths(store, started)


if __name__ == "__main__":
    main()
