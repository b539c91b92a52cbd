"""The grid of tiny runs and evaluations, and how they are started.

All names of configuration fields, flows and modules that the pinned runs depend on are in this file: code that moves
or renames them changes this file alone, and no value.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_annotator import FakeAnnotator, longer
from tests.fake_judge import rate, serving
from tests.tiny import PROMPTS, WDPO, build_model, write_config, write_prompts

HARNESS = Path(__file__).parents[2] / "harness"
ENGINE = {"type": "transformers", "dtype": "float32"}
SAMPLING = {"engine": ENGINE, "max_tokens": 10, "shard_size": 4}
JUDGED = "optune"
"""The run whose policies are evaluated."""
NOT_PORTABLE = frozenset({"trained-reward"})
"""Runs that compute in bfloat16, whose results another processor does not repeat: reward models are trained in it."""


@dataclass(frozen=True)
class Run:
    """A configuration, as its difference from the one of `tests.tiny.write_config`."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Fields that are merged into sections."""
    replaced: dict[str, Any] = field(default_factory=dict)
    """Sections that take the place of others."""


def grid(folder: Path) -> dict[str, Run]:
    """Return the runs by name, in the order in which they share one store.

    Args:
        folder: holds what `write_inputs` writes.
    """
    pairs = {
        "source": {"type": "file", "path": str(folder / "pairs.jsonl")},
        "pairs": {"chosen": "chosen", "rejected": "rejected"},
        "sample": None,
        "held_out": 2,
    }
    labelled = {
        "type": "trained",
        "model": str(folder / "policy"),
        "pairs": {"type": "labelled", "function": "tests.rewards:vowels"},
        "learning_rate": 1e-2,
        "epochs": 2,
        "train_batch_size": 4,
        "frozen_layers": 1,
        "dtype": "float32",
    }
    classifier = {"type": "classifier", "model": str(folder / "classifier"), "dtype": "float32"}
    one, three = {"iterations": 1}, {"iterations": 3}
    nothing = {"selection": {"type": "none"}}
    best_of_n = {"loss": {"type": "best_of_n"}}
    hypo_loss = {"type": "hypo", "beta1": 0.1, "kl_coefficient": 0.1, "rho": 0.5}
    hypo = {"loss": hypo_loss, "reference": "initial", "epochs": 2}
    lora = {"lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2}
    other = {"optimizer": "adamw_torch", "schedule": "cosine", "warmup_ratio": 0.3, "epochs": 2, "batch_size": 5}
    return {
        JUDGED: Run({}, three),
        "random": Run({"selection": {"type": "random"}}),
        "all": Run({}, {"selection": {"type": "all"}}),
        "margin": Run({"selection": {"type": "margin"}}),
        "relative": Run({"selection": {"type": "relative"}}, three),
        "bandit": Run({"selection": {"type": "bandit"}}, three),
        "best-of-n": Run({"training": best_of_n}, one),
        "reward-gap": Run({"training": {"min_reward_gap": 0.05}}, one),
        "initial-reference": Run({"training": {"reference": "initial"}}),
        "other-optimizer": Run({"training": other}, one),
        "lora": Run({"training": lora}, one),
        "ahead": Run({"generation": {"ahead": True}}),
        "three-samples": Run({"generation": {"samples": 3}}, one),
        "engine-logps": Run({"generation": {"logps": True}, "training": {"reference_logps": "engine"}}, one),
        "classifier": Run({}, one | {"reward": classifier}),
        "trained-reward": Run({}, one | {"reward": labelled}),
        "offline": Run({"prompts": pairs, "training": {"loss": WDPO | {"beta2": 0.0}}}, nothing),
        "hypo": Run({"prompts": pairs, "training": hypo}, nothing),
    }


def write_inputs(folder: Path) -> None:
    """Write the models and data that the runs read."""
    build_model(folder / "policy")
    build_model(folder / "classifier", labels=1, seed=3)
    write_prompts(folder / "prompts.jsonl")
    rows = [
        {"prompt": prompt, "chosen": "aeiou " * (1 + number % 3), "rejected": "xyz " * (1 + number % 2)}
        for number, prompt in enumerate(PROMPTS[:10])
    ]
    _write_jsonl(folder / "pairs.jsonl", rows)


def perform(folder: Path, store: Path, name: str) -> None:
    """Run one run of the grid to its target iteration."""
    from flows.run import optune

    run = grid(folder)[name]
    changes = run.changes | {"training": {"batch_size": 3} | run.changes.get("training", {})}
    optune(str(write_config(folder, run.replaced, name=name, **changes)), store=str(store))


@contextmanager
def stages_in_this_process() -> Iterator[None]:
    """Inside, a stage runs where it is asked for, on one thread, instead of in a child process of its own.

    A child takes three to four seconds to import what this process has imported already. Only the boundary between the
    processes is replaced: a stage gets its request as JSON, as it would in a child.
    """
    import torch

    from optune_core.stages import launch

    def run(store: Any, stage: Any, spec: Any, progress: Any, log: Any, committed: Callable[[], None], *_: Any) -> None:
        torch.set_num_threads(1)
        stage.run(store, stage.spec.model_validate_json(spec.model_dump_json()), progress)
        committed()

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run_children", run)
        yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- evaluations


def evaluations(folder: Path, store: Path) -> dict[str, Callable[[], str | None]]:
    """Return, by kind of evaluation, what performs it on the policies of the run JUDGED.

    Each returns the address of the server that judged, which differs from one time to the next, if there was one.
    """
    return {
        "win-score": lambda: _win_score(folder, store),
        "judged": lambda: _judged(folder, store),
        "alpaca-eval": lambda: _alpaca_eval(folder, store),
        "harness": lambda: _harness(folder, store),
    }


def _win_score(folder: Path, store: Path) -> None:
    from flows.evaluate import evaluate

    stand_in = {"type": "function", "function": "tests.rewards:brevity"}
    config = {
        "kind": "win_score",
        "name": "win-score",
        "prompts": {"type": "held_out"},
        "baseline": {"type": "iteration", "iteration": 0},
        "judge": {"type": "reward", "reward": stand_in, "tie_margin": 1.0},
        "shard_size": 4,
    }
    evaluate(_write_yaml(folder, config), JUDGED, every=True, store=str(store))


def _judged(folder: Path, store: Path) -> str:
    from flows.evaluate import evaluate

    build_model(folder / "other", seed=7)
    source = {"type": "file", "path": str(folder / "prompts.jsonl")}
    with _environment_restored() as patch, serving(rate) as server:
        patch.setenv("SOME_JUDGE", "a-long-enough-key")
        judge = {"type": "openai", "model": "fake", "base_url": server.url, "api_key_env": "SOME_JUDGE"}
        config = {
            "kind": "win_score",
            "name": "judged",
            "prompts": {"type": "drawn", "source": source, "sample": 8, "max_tokens": 64},
            "baseline": {"type": "model", "model": str(folder / "other")},
            "generation": SAMPLING,
            "judge": judge,
        }
        evaluate(_write_yaml(folder, config), JUDGED, iteration=1, store=str(store))
        return server.url


def _alpaca_eval(folder: Path, store: Path) -> str:
    from flows.evaluate import evaluate

    rows = [
        {"instruction": text, "output": "Words about it, " * (1 + number % 4), "generator": "writer"}
        for number, text in enumerate(PROMPTS[:12])
    ]
    (folder / "references.json").write_text(json.dumps(rows))
    with _environment_restored() as patch, serving(longer, FakeAnnotator) as server:
        patch.setenv("SOME_ANNOTATOR", "a-long-enough-key")
        source = {"type": "file", "path": str(folder / "references.json")}
        config = {
            "kind": "alpaca_eval",
            "name": "alpaca-eval",
            "prompts": {"source": source, "sample": 9, "max_tokens": 64},
            "calibration": str(_write_calibration(folder / "calibration.csv", len(rows))),
            "generation": SAMPLING,
            "annotator": {"base_url": server.url, "api_key_env": "SOME_ANNOTATOR"},
            "shard_size": 4,
        }
        evaluate(_write_yaml(folder, config), JUDGED, every=True, store=str(store))
        return server.url


def _harness(folder: Path, store: Path) -> None:
    import datasets

    from flows.evaluate import evaluate

    config = {
        "kind": "harness",
        "name": "harness",
        "include": str(HARNESS),
        "engine": ENGINE | {"batch_size": 4},
        "limit": 3,
        "tasks": [
            {"task": "capitals", "num_fewshot": 1, "metric": "acc_norm"},
            {"task": "sums", "num_fewshot": 0, "metric": "exact_match", "filter": "first-number"},
        ],
    }
    cache = str(folder / "datasets")
    with _environment_restored() as patch:
        patch.setenv("HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        evaluate(_write_yaml(folder, config), JUDGED, every=True, store=str(store))


@contextmanager
def _environment_restored() -> Iterator[pytest.MonkeyPatch]:
    """Undo what evaluation libraries change of the environment and of the root logger when they are imported."""
    level, environment = logging.getLogger().level, dict(os.environ)
    with ExitStack() as stack:
        stack.callback(logging.getLogger().setLevel, level)
        stack.callback(os.environ.update, environment)
        stack.callback(os.environ.clear)
        yield stack.enter_context(pytest.MonkeyPatch.context())


def _write_calibration(path: Path, instructions: int) -> Path:
    """Write annotations of two baselines, one of which is concise and one verbose."""
    lines = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for name, shift in (("concise", 1.2), ("verbose", -1.2)):
        for index in range(instructions):
            delta = shift + (index * 7 % 5 - 2) / 2
            lines.append(f"{name},{1 / (1 + 2**delta)},{index},{delta},{(index * 5 % 7 - 3) / 3},False")
    path.write_text("\n".join(lines) + "\n")
    return path


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_yaml(folder: Path, config: dict[str, Any]) -> str:
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)
