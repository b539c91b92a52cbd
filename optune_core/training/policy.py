"""Training of π_{t+1} from π_t and D_t, from reading the pairs to committing the policy."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from optune_core.data.schemas import REFERENCE, REPLAY, only, read_table, write_table
from optune_core.data.shards import REPLAY_FILE, RESPONSES_FILE, read_shards
from optune_core.errors import DataError, TransientError
from optune_core.losses.loss import Loss
from optune_core.process import preemption
from optune_core.process.malloc import keep_freed_memory
from optune_core.process.progress import Progress
from optune_core.replay import trainable
from optune_core.storage import ArtifactStore
from optune_core.training import checkpoints as checkpoint_files
from optune_core.training.batches import Step, plan_steps
from optune_core.training.callbacks import ReportProgress, SaveByTheClock
from optune_core.training.layout import TokenPairs
from optune_core.training.logps import PLAIN, choose_kernel, compute_inside
from optune_core.training.online import SAMPLED, as_rows
from optune_core.training.recovery import Checkpoints
from optune_core.training.reference import FILE, ReferencePass, shard_table
from optune_core.training.spec import Spec, Training
from optune_core.training.trainer import PairData, PolicyTrainer, trainer_arguments, with_adapter
from optune_core.training.weights import load_master, save_policy, weights_on_every_process

LOG = "train_log.jsonl"
COLUMNS = only(
    REPLAY,
    "prompt_id",
    *(f"{side}_token_ids" for side in ("prompt", "chosen", "rejected")),
    *(f"{side}_{what}" for side in ("chosen", "rejected") for what in ("reward", "policy_logps")),
    "generated_at",
    "sampled_from",
)
"""Columns of D_t that training reads; texts are not among them."""


def train(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train π_{t+1} and commit it; errors as for `stages.policy.run`, but torch's own for memory that does not
    suffice."""
    keep_freed_memory()
    config, state = spec.training, PartialState(cpu=not torch.cuda.is_available())
    started = time.monotonic()
    replay = training_pairs(read_table(store.fetch(spec.replay) / REPLAY_FILE, COLUMNS), config)
    loss, preferences = config.loss, replay.num_rows
    samples = read_shards(store, spec.online, RESPONSES_FILE, SAMPLED)
    replay = pa.concat_tables([replay, as_rows(samples, COLUMNS, spec.iteration)])
    pairs = TokenPairs(replay, rejected=loss.needs_rejected)
    policy = store.fetch(spec.policy)
    model, kernel = _load(policy, config, state)
    steps = _steps(pairs, kernel, spec, state.num_processes)
    logps = None
    if loss.needs_reference:
        first_epoch = steps[: len(steps) // config.epochs]
        logps = ReferencePass(store, spec, replay, pairs, kernel, state)(model, first_epoch, progress)
    rewards = torch.tensor(
        [pc.fill_null(replay[f"{side}_reward"], math.nan).to_pylist() for side in ("chosen", "rejected")]
    )
    reference_seconds = time.monotonic() - started

    started = time.monotonic()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # FSDP loads the weights on one process and distributes them
        model = load_master(policy)
        compute_inside(model, kernel, cast_weights=False)
    with store.scratch() as scratch, Checkpoints(store, spec.work) as checkpoints:
        data = PairData(pairs, logps, rewards, preferences)
        trainer = _trainer(spec, model, steps, data, scratch / "trainer", checkpoints, progress)
        checkpoint = _newest(store, checkpoints, trainer)
        with preemption.deferred():
            trainer.train(resume_from_checkpoint=checkpoint)
            weights = trainer.gathered_weights()
            model = trainer.accelerator.unwrap_model(trainer.model)
            if config.lora is not None:
                model = model.merge_and_unload()
            if not state.is_main_process:
                return
            progress("save policy", 0, 0)
            output = scratch / "policy"
            output.mkdir()
            save_policy(model, weights, policy, output)
            # The summary at the end is left out: it covers only the steps since the last interruption.
            log = [entry for entry in trainer.state.log_history if "loss" in entry]
            (output / LOG).write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in log))
            if logps is not None and config.reference == "initial":
                carried = dict(enumerate(zip(*logps[:, :preferences].tolist(), strict=True)))
                write_table(shard_table(replay["prompt_id"].to_pylist(), carried), REFERENCE, output / FILE)
            store.commit(
                spec.work,
                output,
                metrics={
                    "pairs": preferences,
                    **({"online": samples.num_rows} if spec.online else {}),
                    "steps": len(log),
                    "tokens": int(pairs.tokens(prompt_once=kernel != PLAIN).sum()) * config.epochs,
                    "kernel": kernel,
                    "tokens_at_once": spec.tokens_at_once,
                    **_mean_weight(rewards, loss),
                    "first": log[0] if log else {},
                    "last": log[-1] if log else {},
                },
                timing={"seconds": time.monotonic() - started, "reference_seconds": reference_seconds},
            )
            checkpoints.wait()
            checkpoints.discard_all()


def _mean_weight(rewards: torch.Tensor, loss: Loss) -> dict[str, float]:
    """Return the mean weight of all pairs as a metric; none if the loss has no weights. `rewards`: float32, (2, N)."""
    weights = loss.pair_weights((rewards[0] - rewards[1]).double().numpy())
    return {} if weights is None else {"weights/mean": float(weights.mean())}


def training_pairs(replay: pa.Table, config: Training) -> pa.Table:
    """Return the rows of D_t that are trained on: those with a pair and the reward gap that is asked for.

    Raises:
        DataError: no row is left.
    """
    pairs = trainable(replay)
    if pairs.num_rows == 0:
        raise DataError("no prompt of the replay set has a preference pair: look at the reasons in its column `reason`")
    if config.min_reward_gap is None:
        return pairs
    gap = pc.subtract(pairs["chosen_reward"], pairs["rejected_reward"])
    kept = pairs.filter(pc.greater_equal(gap, config.min_reward_gap))
    if kept.num_rows == 0:
        raise DataError(
            f"training.min_reward_gap={config.min_reward_gap} leaves none of {pairs.num_rows} pairs: the largest "
            f"reward gap is {pc.max(gap).as_py():.4g}. Lower training.min_reward_gap"
        )
    return kept


def _load(policy: Path, config: Training, state: PartialState) -> tuple[Any, str]:
    """Return π_t on the device of this process, prepared to compute log-probabilities, and the name of its kernel."""
    with weights_on_every_process():
        model = load_master(policy).to(state.device)
    kernel = choose_kernel(model, getattr(torch, config.precision))
    compute_inside(model, kernel, cast_weights=not config.gradient_checkpointing)
    return model, kernel


def _steps(pairs: TokenPairs, kernel: str, spec: Spec, processes: int) -> list[Step]:
    """Return the optimizer steps of all epochs, in order."""
    tokens = pairs.tokens(prompt_once=kernel != PLAIN).tolist()
    return [
        step
        for epoch in range(spec.training.epochs)
        for step in plan_steps(
            tokens,
            batch_size=spec.training.batch_size,
            micro_batch_tokens=spec.tokens_at_once,
            processes=processes,
            seed=spec.seed + spec.iteration,
            epoch=epoch,
        )
    ]


def _trainer(
    spec: Spec,
    model: Any,
    steps: Sequence[Step],
    data: PairData,
    folder: Path,
    checkpoints: Checkpoints,
    progress: Progress,
) -> PolicyTrainer:
    config, seed = spec.training, spec.seed + spec.iteration
    return PolicyTrainer(
        model=with_adapter(model, config, seed),
        args=trainer_arguments(config, output_dir=str(folder), seed=seed),
        config=config,
        steps=steps,
        data=data,
        epochs=config.epochs,
        callbacks=[ReportProgress(progress), SaveByTheClock(config.checkpoint_seconds, checkpoints)],
    )


def _newest(store: ArtifactStore, checkpoints: Checkpoints, trainer: PolicyTrainer) -> str | None:
    """Return the folder of the checkpoint to resume from; None: there is none. The first process chooses for all."""
    state = PartialState()
    chosen = (
        checkpoints.newest(lambda folder: checkpoint_files.check(folder, trainer.trained))
        if state.is_main_process
        else None
    )
    if state.num_processes == 1:
        return None if chosen is None else str(chosen[1])
    (step,) = broadcast_object_list([None if chosen is None else chosen[0]])
    if step is None:
        return None
    with state.local_main_process_first():  # one download a machine
        found = store.find(checkpoints.work(step))
        if found is None:
            raise TransientError(f"the checkpoint of step {step} was deleted before this process could read it")
        return str(store.fetch(found.ref))
