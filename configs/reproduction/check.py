"""Accuracy of reward models on preference files, compared with the accuracy of length alone.

    python -m configs.reproduction.check FILE… --models FOLDER…

Each FILE contains JSON lines with `prompt, chosen, rejected`. FOLDER is a reward model with one logit, such as
`.optune/store/artifacts/reward-model/KEY/ATTEMPT/model`. Accuracies have 95 % bootstrap intervals over prompts; all
pairs of a prompt are drawn together. `near-equal` are the pairs whose lengths differ by at most 10 %.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from configs.reproduction.prepare import PreferencePair, read_pairs
from optune_core.rewards.classifier_scorer import ClassifierScorer
from optune_core.rewards.reward import Conversation

RESAMPLES = 2000
SIDES = ("chosen", "rejected")


def outcomes(gaps: list[float]) -> list[float]:
    """Score each gap: 1 if the chosen response scores higher, ½ for equal scores, otherwise 0."""
    return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]


def interval(pairs: list[PreferencePair], right: list[float]) -> str:
    """Format the accuracy with its 95 % interval and the number of pairs: `0.63 [0.60, 0.66] of 842`."""
    prompts: defaultdict[str, list[float]] = defaultdict(list)
    for pair, one in zip(pairs, right, strict=True):
        prompts[pair["prompt"]].append(one)
    totals = np.array([(sum(ones), len(ones)) for ones in prompts.values()])
    drawn = totals[np.random.default_rng(0).integers(len(totals), size=(RESAMPLES, len(totals)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return f"{np.mean(right):.2f} [{low:.2f}, {high:.2f}] of {len(right)}"


def near_equal(pair: PreferencePair) -> bool:
    """Return whether the longer response has at most 10 % more characters than the shorter one."""
    shorter, longer = sorted(len(pair[side]) for side in SIDES)
    return longer <= 1.1 * shorter


def report(name: str, pairs: list[PreferencePair], gaps: list[float]) -> None:
    """Print the accuracy on all pairs and on those of near-equal length."""
    right = outcomes(gaps)
    near = [(pair, one) for pair, one in zip(pairs, right, strict=True) if near_equal(pair)]
    print(f"  {name:<28} {interval(pairs, right):<30} near-equal {interval(*map(list, zip(*near, strict=True)))}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Accuracy of reward models, compared with length alone.")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    scorers = {folder: ClassifierScorer(folder, batch_size=16, dtype="bfloat16") for folder in arguments.models}
    for file in arguments.files:
        pairs = read_pairs(file)
        print(f"{file}: accuracy [95 % over prompts]")
        report("the longer one", pairs, [float(len(pair["chosen"]) - len(pair["rejected"])) for pair in pairs])
        conversations = [
            Conversation(pair["prompt"], [{"role": "user", "content": pair["prompt"]}], pair[side])
            for pair in pairs
            for side in SIDES
        ]
        for folder, scorer in scorers.items():
            scores = scorer.score(conversations, lambda done: None)
            gaps = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
            report(str(folder)[-28:], pairs, gaps)


if __name__ == "__main__":
    main()
