"""Facts of a sound run, made by hand, for tests that change some of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from optune_core.reports.facts import HeldOut, IterationFacts, PairFacts, Record, ResponseCounts, RunFacts
from tests.tiny import WDPO

CONFIG: Record = {
    "name": "sound",
    "seed": 3,
    "iterations": 2,
    "policy": {"model": "tiny", "revision": None},
    "prompts": {"sample": 10, "held_out": 4},
    "selection": {"type": "optune", "rho": 0.5},
    "generation": {
        "samples": 2,
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 64,
        "engine": {"type": "transformers"},
    },
    "reward": {"type": "classifier", "model": "some/reward-model"},
    "held_out": {"gold": {"type": "function", "function": "a.b:c"}},
    "training": {
        "loss": WDPO,
        "reference": "previous",
        "optimizer": "rmsprop",
        "learning_rate": 5e-7,
        "schedule": "linear",
        "batch_size": 4,
        "epochs": 1,
        "precision": "float32",
        "lora": None,
    },
}
ANSWERS = ResponseCounts(responses=20, tokens=600, truncated=2, distinct=18)
SECONDS = {"start engine": 10.0, "generate": 40.0, "score": 5.0, "rank and merge": 1.0, "train": 44.0}


def change(difference: float, low: float, high: float) -> Record:
    """Return a result of `paired_difference`."""
    return {"before": 1.0, "after": 1 + difference, "difference": difference, "low": low, "high": high, "prompts": 4}


def iteration(t: int, **changes: Any) -> IterationFacts:
    """Return a sound iteration of ten prompts."""
    step = {
        "loss": 0.35,
        "rewards/chosen": 0.01,
        "rewards/rejected": -0.02,
        "rewards/margins": 0.03,
        "rewards/accuracies": 0.75,
        "grad_norm": 1.5,
    }
    facts = IterationFacts(
        summary={
            "iteration": t,
            "prompts": 10,
            "regenerated": 5 if t else 10,
            "reused": 5 if t else 0,
            "kept": 0,
            "unpaired": 0,
            "first_loss": 0.6 * math.log(2),
            "first_loss_expected": 0.6 * math.log(2),
            "seconds": SECONDS,
            "speedup": 1.45 if t else 1.0,
            "bound": 1.455 if t else 1.0,
            "seconds_saved": 45.0 if t else 0.0,
        },
        metrics={
            "reasons": {},
            "pairs": 10,
            "rm/chosen": 1.0,
            "rm/rejected": 0.5,
            "rm/margins": 0.5,
            "tokens/chosen": 30.0,
            "tokens/rejected": 31.0,
            "age/mean": 0.5 * t,
            "gain/mean": 0.25 if t else None,
            "gain/bottom_half_share": 1.0 if t else None,
        },
        selected=5 if t else 10,
        fresh=ANSWERS,
        pairs=PairFacts(
            chosen_rewards=np.linspace(0.5, 1.5, 10),
            rejected_rewards=np.linspace(0.0, 1.0, 10),
            chosen_tokens=np.arange(10.0) % 3 + 20,
            rejected_tokens=np.arange(10.0) % 4 + 20,
            made={t: 5, 0: 5} if t else {0: 10},
            weights=np.full(10, 0.62),
        ),
        correlations={"chosen": 0.1, "rejected": -0.1, "both": 0.05},
        gains=(1.25, 0.0) if t else None,
        log=[step] * 3,
        log_ratios={"chosen": 0.1, "rejected": -0.2},
        starts_at_reference=True,
        code_version="0.1.0",
        committed_at=1_700_000_000.0 + t,
    )
    return replace(facts, **changes)


def sound_run(**changes: Any) -> RunFacts:
    """Return a run of two iterations without any warning."""
    facts = RunFacts(
        run="sound",
        config=CONFIG,
        iterations=[iteration(0), iteration(1)],
        held_out=held_out(change(0.3, 0.1, 0.5), change(0.2, 0.1, 0.3)),
        evaluations=[],
        reward_model=None,
        state="finished",
        store="a-store",
    )
    return replace(facts, **changes)


def held_out(proxy: Record, gold: Record | None = None, last: ResponseCounts = ANSWERS) -> list[HeldOut]:
    """Return π_0 and π_1, with the change between them."""
    end = {"proxy": proxy} if gold is None else {"proxy": proxy, "gold": gold}
    return [HeldOut(0, {name: change(0.0, 0.0, 0.0) for name in end}, ANSWERS), HeldOut(1, end, last)]
