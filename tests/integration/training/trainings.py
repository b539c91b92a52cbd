"""Trainings of the tiny policy on random pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from optune_core.training.batches import plan_steps
from optune_core.training.logps import PLAIN, compute_inside
from optune_core.training.reference import reference_logps, shards_of
from tests.integration.training.sequences import load, pairs_of
from tests.tiny import WDPO


def dataset(pairs: int) -> list[dict[str, Any]]:
    generator = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [generator.randrange(3, 300) for _ in range(generator.randrange(low, high))]

    return [
        {
            "prompt_ids": tokens(2, 9),
            "chosen_ids": tokens(1, 14),
            "rejected_ids": tokens(1, 14),
            "chosen_rewards": generator.random() + 1,
            "rejected_rewards": generator.random(),
        }
        for _ in range(pairs)
    ]


def train(
    tiny: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    resume: str | None = None,
    save_at: int | None = None,
    kernel: str = "sdpa",
    samples: Sequence[tuple[list[int], list[int]]] = (),
    reference: torch.Tensor | None = None,
    **changes: Any,
) -> Any:
    """Train on `rows`.

    Args:
        resume: checkpoint folder to go on from.
        save_at: step after which a checkpoint is written and training stops.
        samples: prompt and response of online samples.
        reference: (2, rows + samples), log-probabilities; default: the policy's own.
        changes: fields of `Training`.
    """
    from transformers import TrainerCallback

    from optune_core.training.spec import Training
    from optune_core.training.trainer import PairData, PolicyTrainer, trainer_arguments, with_adapter

    config = Training(
        **{
            "loss": WDPO,
            "batch_size": 4,
            "micro_batch_tokens": 50,
            "learning_rate": 1e-4,
            "precision": "float32",
        }
        | changes
    )
    model, loss = load(tiny), config.loss
    compute_inside(model, kernel, cast_weights=not config.gradient_checkpointing)
    triples = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]
    triples += [(*sample, []) for sample in samples]
    pairs = pairs_of(triples, loss.needs_rejected)
    tokens = pairs.tokens(prompt_once=kernel != PLAIN).tolist()
    steps = [
        step
        for epoch in range(config.epochs)
        for step in plan_steps(
            tokens,
            batch_size=config.batch_size,
            micro_batch_tokens=config.micro_batch_tokens,
            processes=1,
            seed=3,
            epoch=epoch,
        )
    ]
    if reference is None and loss.needs_reference:
        logps: dict[int, tuple[float, float]] = {}
        for shard in shards_of(steps[: len(steps) // config.epochs], config.batch_size):
            for pack in shard:
                logps |= reference_logps(model, torch.device("cpu"), pairs, pack, getattr(torch, config.precision))
        reference = torch.tensor([logps[row] for row in range(len(pairs))]).T
    nothing = [float("nan")] * len(samples)
    rewards = [[*(row[f"{side}_rewards"] for row in rows), *nothing] for side in ("chosen", "rejected")]
    data = PairData(pairs, reference, torch.tensor(rewards), len(rows))

    class SaveAndStop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == save_at

    trainer = PolicyTrainer(
        model=with_adapter(model, config, seed=3),
        args=trainer_arguments(config, output_dir=str(folder), seed=3),
        config=config,
        steps=steps,
        data=data,
        epochs=config.epochs,
        callbacks=[SaveAndStop()] if save_at else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


SAMPLES = [([5, 6, 7], [8, 9, 10, 11]), ([14], [15] * 7), ([20, 21], [22]), ([30], [31, 32, 33])]
HYPO = {"loss": {"type": "hypo", "beta1": 0.1, "kl_coefficient": 0.3}, "samples": SAMPLES}
