"""Stage `policy`: π_{t+1}, trained by weighted DPO on D_t; and, once, the reference log-probabilities it needs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from optune_core.config.schema import Training
from optune_core.errors import DataError
from optune_core.progress import Progress
from optune_core.replay import trainable
from optune_core.schemas import REFERENCE, REPLAY, read_table, write_table
from optune_core.storage import ArtifactStore, Manifest, Ref, Work

VERSION = 1
REFERENCE_VERSION = 1
CHECKPOINT_VERSION = 1
LOG = "train_log.jsonl"


class Spec(BaseModel):
    training: Training
    seed: int
    iteration: int
    policy: dict[str, str]
    """Reference to π_t."""
    initial: dict[str, str]
    """Reference to π_0."""
    replay: dict[str, str]
    """Reference to D_t."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """The policy. (The reference log-probabilities are a function of its parents, so not one themselves.)"""
    params = spec.training.model_dump(mode="json", exclude={"checkpoint_steps", "accelerate_config"})
    params |= {"seed": spec.seed, "iteration": spec.iteration}
    parents = {"policy": Ref.from_json(spec.policy), "replay": Ref.from_json(spec.replay)}
    if spec.training.reference == "initial":
        parents["reference"] = Ref.from_json(spec.initial)
    return [Work("policy", VERSION, params, parents)]


def reference_work(spec: Spec) -> Work:
    """The log-probabilities of D_t's pairs under the reference, in this precision and these micro-batches."""
    reference = spec.initial if spec.training.reference == "initial" else spec.policy
    params = {"precision": spec.training.precision, "micro_batch_size": spec.training.micro_batch_size}
    parents = {"policy": Ref.from_json(reference), "replay": Ref.from_json(spec.replay)}
    return Work("reference", REFERENCE_VERSION, params, parents)


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train, in as many processes as the launcher started; the first one commits.

    Raises:
        DataError: no prompt has a pair.
        NonFiniteLoss: the loss diverged.
    """
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import AutoTokenizer

    from optune_core.training.batches import Lengths, PairCollator, compose_micro_batches
    from optune_core.training.weights import load_master, save_policy

    (work,) = works(store, spec)
    started = time.monotonic()
    state = PartialState()
    replay = trainable(read_table(store.fetch(Ref.from_json(spec.replay)) / "replay.parquet", REPLAY))
    if replay.num_rows == 0:
        raise DataError("no prompt of the replay set has a preference pair: see the reasons in its `reason` column")
    policy = store.fetch(Ref.from_json(spec.policy))
    tokenizer: Any = AutoTokenizer.from_pretrained(policy / "model")
    collator = PairCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
    rows = _rows(replay)
    lengths = [Lengths(len(r["prompt_ids"]), len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    micro_batches = compose_micro_batches(lengths, spec.training.micro_batch_size)

    with state.main_process_first():
        reference = _reference(store, spec, replay["prompt_id"], rows, micro_batches, collator, progress)
    reference_seconds = time.monotonic() - started
    table = read_table(store.fetch(reference.ref) / "reference.parquet", REFERENCE)
    for row, chosen, rejected in zip(
        rows, table["reference_chosen_logps"].to_pylist(), table["reference_rejected_logps"].to_pylist(), strict=True
    ):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected

    started = time.monotonic()
    with store.scratch() as scratch:
        trainer = _train(
            store,
            spec,
            work,
            load_master(policy),
            tokenizer,
            Dataset.from_list(rows),
            micro_batches,
            collator,
            scratch / "trainer",
            progress,
        )
        model = trainer.accelerator.unwrap_model(trainer.model)
        if spec.training.lora is not None:
            model = model.merge_and_unload()
        if not state.is_main_process:
            return
        progress("save policy", 0, 0)
        output = scratch / "policy"
        output.mkdir()
        save_policy(model, policy, output)
        log = [_without_clock(entry) for entry in trainer.state.log_history]
        steps = [entry for entry in log if "loss" in entry]
        (output / LOG).write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in log))
        store.commit(
            work,
            output,
            metrics=_metrics(rows, steps, spec.training),
            timing={"seconds": time.monotonic() - started, "reference_seconds": reference_seconds},
        )


def _rows(replay: pa.Table) -> list[dict[str, Any]]:
    names = {
        "prompt_token_ids": "prompt_ids",
        "chosen_token_ids": "chosen_ids",
        "rejected_token_ids": "rejected_ids",
        "chosen_reward": "chosen_rewards",
        "rejected_reward": "rejected_rewards",
    }
    rows: list[dict[str, Any]] = replay.select(list(names)).rename_columns(list(names.values())).to_pylist()
    return rows


def _reference(
    store: ArtifactStore,
    spec: Spec,
    prompt_ids: pa.ChunkedArray,
    rows: list[Any],
    micro_batches: list[list[int]],
    collator: Any,
    progress: Progress,
) -> Manifest:
    import torch

    from optune_core.training.logps import reference_logps
    from optune_core.training.weights import load_master

    work = reference_work(spec)
    if (found := store.find(work)) is not None:
        return found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_master(store.fetch(work.parents["policy"])).to(device).eval()
    precision = getattr(torch, spec.training.precision)
    logps = reference_logps(
        model, rows, micro_batches, collator, precision, lambda done: progress("reference", done, len(rows))
    )
    table = pa.table(
        {
            "prompt_id": prompt_ids,
            "reference_chosen_logps": pa.array([chosen for chosen, _ in logps], pa.float64()),
            "reference_rejected_logps": pa.array([rejected for _, rejected in logps], pa.float64()),
        }
    )
    with store.scratch() as scratch:
        write_table(table, REFERENCE, scratch / "reference.parquet")
        return store.commit(work, scratch, metrics={"pairs": len(rows)})


def _train(
    store: ArtifactStore,
    spec: Spec,
    work: Work,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    micro_batches: list[list[int]],
    collator: Any,
    folder: Path,
    progress: Progress,
) -> Any:
    from accelerate import PartialState

    from optune_core.training.callbacks import CommitCheckpoints, ReportProgress
    from optune_core.training.trainer import WeightedDPOTrainer, trainer_arguments

    config = spec.training
    arguments = trainer_arguments(
        config, output_dir=str(folder), seed=spec.seed + spec.iteration, devices=PartialState().num_processes
    )
    adapter = None
    if config.lora is not None:
        from peft import LoraConfig

        adapter = LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=config.lora.target_modules,
            task_type="CAUSAL_LM",
        )
    checkpoints = CommitCheckpoints(store, lambda step: checkpoint_work(work, step))
    trainer = WeightedDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=adapter,
        micro_batches=micro_batches,
        beta1=config.beta1,
        beta2=config.beta2,
        callbacks=[ReportProgress(progress), checkpoints],
    )
    trainer.train(resume_from_checkpoint=_newest_checkpoint(store, work, config, len(dataset)))
    return trainer


def checkpoint_work(work: Work, step: int) -> Work:
    """The trainer's state after an optimizer step: no function of anything but the training and the step."""
    return Work("checkpoint", CHECKPOINT_VERSION, {"policy": work.key, "step": step})


def _newest_checkpoint(store: ArtifactStore, work: Work, config: Training, pairs: int) -> str | None:
    if config.checkpoint_steps is None:
        return None
    last = config.epochs * -(-pairs // config.batch_size)
    for step in range(last - last % config.checkpoint_steps, 0, -config.checkpoint_steps):
        if (found := store.find(checkpoint_work(work, step))) is not None:
            return str(store.fetch(found.ref))
    return None


_CLOCK = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


def _without_clock(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in _CLOCK}


def _metrics(rows: list[dict[str, Any]], steps: list[dict[str, Any]], config: Training) -> dict[str, Any]:
    import torch

    from optune_core.losses import reward_weights

    chosen, rejected = (torch.tensor([row[f"{side}_rewards"] for row in rows]) for side in ("chosen", "rejected"))
    tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return {
        "pairs": len(rows),
        "steps": len(steps),
        "tokens": tokens * config.epochs,
        "weights/mean": float(reward_weights(chosen, rejected, config.beta2).mean()),
        "first": steps[0] if steps else {},
        "last": steps[-1] if steps else {},
    }
