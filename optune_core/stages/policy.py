"""Stage `policy`: π_{t+1}, trained by weighted DPO on D_t; and, once, the reference log-probabilities it needs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field

from optune_core import preemption
from optune_core.config.schema import Training
from optune_core.errors import DataError, OutOfMemory, TransientError
from optune_core.failpoints import reach
from optune_core.progress import Progress
from optune_core.replay import trainable
from optune_core.schemas import REFERENCE, REPLAY, read_table, write_table
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2
REFERENCE_VERSION = 2
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
    micro_batch_parts: int = Field(default=1, ge=1)
    """Consecutive parts that a micro-batch is computed in, where memory does not suffice for the whole: the same
    policy but for roundings, so no part of its key."""

    @property
    def pairs_at_once(self) -> int:
        """Pairs that share a forward and backward pass."""
        return -(-self.training.micro_batch_size // self.micro_batch_parts)


def smaller(spec: Spec) -> Spec | None:
    """The same work in half the memory for activations; None: a single pair is computed at a time already."""
    if spec.pairs_at_once == 1:
        return None
    return spec.model_copy(update={"micro_batch_parts": spec.micro_batch_parts * 2})


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """The policy. (The reference log-probabilities are a function of its parents, so not one themselves.)"""
    params = spec.training.model_dump(mode="json", exclude={"checkpoint_every", "accelerate_config"})
    params |= {"seed": spec.seed, "iteration": spec.iteration}
    parents = {"policy": Ref.from_json(spec.policy), "replay": Ref.from_json(spec.replay)}
    if spec.training.reference == "initial":
        parents["reference"] = Ref.from_json(spec.initial)
    return [Work("policy", VERSION, params, parents)]


def reference_work(spec: Spec, shard: int) -> Work:
    """The log-probabilities of a shard of D_t's pairs under the reference, in this precision and in this company."""
    from optune_core.training.reference import SHARD_PAIRS

    reference = spec.initial if spec.training.reference == "initial" else spec.policy
    params = {
        "precision": spec.training.precision,
        "micro_batch_size": spec.training.micro_batch_size,
        "pairs_at_once": spec.pairs_at_once,
        "shard_pairs": SHARD_PAIRS,
        "shard": shard,
    }
    parents = {"policy": Ref.from_json(reference), "replay": Ref.from_json(spec.replay)}
    return Work("reference", REFERENCE_VERSION, params, parents)


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train, in as many processes as the launcher started; the first one commits.

    Asked to end by SIGTERM, it leaves the reference pass at once and training with a checkpoint.

    Raises:
        DataError: no prompt has a pair.
        NonFiniteLoss: the loss or the gradient diverged.
        OutOfMemory: a device's memory does not suffice; `smaller` may know a way.
        Preempted: the process was asked to end.
    """
    import torch

    try:
        _run(store, spec, progress)
    except torch.OutOfMemoryError as error:
        size, at_once = spec.training.micro_batch_size, spec.pairs_at_once
        raise OutOfMemory(
            f"the device has too little memory to train with training.micro_batch_size={size}"
            + (f", {at_once} pairs computed at once" if at_once < size else "")
            + f" ({str(error).splitlines()[0]}). Lower training.micro_batch_size, set training.gradient_checkpointing, "
            "or train an adapter (training.lora)"
        ) from error


def _run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import AutoTokenizer

    from optune_core.training.batches import Lengths, PairCollator, compose_micro_batches
    from optune_core.training.recovery import Checkpoints
    from optune_core.training.weights import load_master, save_policy

    (work,) = works(store, spec)
    started = time.monotonic()
    state = PartialState(cpu=not torch.cuda.is_available())  # else several processes without a GPU do not meet
    replay = trainable(read_table(store.fetch(Ref.from_json(spec.replay)) / "replay.parquet", REPLAY))
    if replay.num_rows == 0:
        raise DataError("no prompt of the replay set has a preference pair: see the reasons in its `reason` column")
    policy = store.fetch(Ref.from_json(spec.policy))
    tokenizer: Any = AutoTokenizer.from_pretrained(policy / "model")
    collator = PairCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
    rows = _rows(replay)
    lengths = [Lengths(len(r["prompt_ids"]), len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    micro_batches = compose_micro_batches(lengths, spec.training.micro_batch_size)
    logps = _reference(store, spec, replay["prompt_id"].to_pylist(), rows, micro_batches, collator, progress)
    for row, (chosen, rejected) in zip(rows, logps, strict=True):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected
    reference_seconds = time.monotonic() - started

    started = time.monotonic()
    with store.scratch() as scratch, Checkpoints(store, work) as checkpoints:
        trainer = _trainer(
            spec,
            load_master(policy),
            tokenizer,
            Dataset.from_list(rows),
            micro_batches,
            collator,
            scratch / "trainer",
            checkpoints,
            progress,
        )
        checkpoint = _newest(store, checkpoints, trainer)
        with preemption.deferred():
            trainer.train(resume_from_checkpoint=checkpoint)
            weights = trainer.gathered_weights()
            model = trainer.accelerator.unwrap_model(trainer.model)
            if spec.training.lora is not None:
                model = model.merge_and_unload()
            if not state.is_main_process:
                return
            progress("save policy", 0, 0)
            output = scratch / "policy"
            output.mkdir()
            save_policy(model, weights, policy, output)
            # Without the summary at the end, which only knows the steps since the last interruption.
            steps = [entry for entry in trainer.state.log_history if "loss" in entry]
            (output / LOG).write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in steps))
            store.commit(
                work,
                output,
                metrics=_metrics(rows, steps, spec),
                timing={"seconds": time.monotonic() - started, "reference_seconds": reference_seconds},
            )
            checkpoints.wait()
            checkpoints.discard_all()


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
    prompt_ids: list[str],
    rows: list[Any],
    micro_batches: list[list[int]],
    collator: Any,
    progress: Progress,
) -> list[tuple[float, float]]:
    """Reference log-probabilities of all rows, in their order. Every process makes its share of the shards."""
    import torch
    from accelerate import PartialState

    from optune_core.training.logps import reference_logps
    from optune_core.training.reference import assemble, reference_shards, shard_of, shard_table
    from optune_core.training.weights import load_master, whole_on_every_process

    state = PartialState()
    size = spec.training.micro_batch_size
    shards = range(reference_shards(len(rows), size))
    mine = {shard: shard_of(micro_batches, size, shard) for shard in shards[state.process_index :: state.num_processes]}
    missing = [shard for shard in mine if store.find(reference_work(spec, shard)) is None]
    total = sum(len(group) for groups in mine.values() for group in groups)
    done = total - sum(len(group) for shard in missing for group in mine[shard])
    model: Any = None
    for shard in missing:
        work = reference_work(spec, shard)
        if model is None:
            with whole_on_every_process():
                model = load_master(store.fetch(work.parents["policy"])).to(state.device).eval()
        logps = reference_logps(
            model,
            rows,
            mine[shard],
            collator,
            getattr(torch, spec.training.precision),
            spec.pairs_at_once,
            lambda count, before=done: progress("reference", before + count, total),  # type: ignore[misc]
        )
        done += len(logps)
        with store.scratch() as scratch:
            write_table(shard_table(prompt_ids, logps), REFERENCE, scratch / "reference.parquet")
            store.commit(work, scratch, metrics={"pairs": len(logps)})
        reach("reference.shard")
        if preemption.requested():
            preemption.leave()
    state.wait_for_everyone()
    found = [store.find(reference_work(spec, shard)) for shard in shards]
    tables = [read_table(store.fetch(each.ref) / "reference.parquet", REFERENCE) for each in found if each is not None]
    return assemble(tables, prompt_ids)


def _trainer(
    spec: Spec,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    micro_batches: list[list[int]],
    collator: Any,
    folder: Path,
    checkpoints: Any,
    progress: Progress,
) -> Any:
    from accelerate import PartialState

    from optune_core.training.callbacks import ReportProgress, SaveByTheClock
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
            target_modules=config.lora.target_modules,
            task_type="CAUSAL_LM",
        )
    return WeightedDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=adapter,
        micro_batches=micro_batches,
        pairs_at_once=spec.pairs_at_once,
        beta1=config.beta1,
        beta2=config.beta2,
        callbacks=[ReportProgress(progress), SaveByTheClock(config.checkpoint_seconds, checkpoints)],
    )


def _newest(store: ArtifactStore, checkpoints: Any, trainer: Any) -> str | None:
    """The folder to go on from: the first process chooses, all read the same step."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from optune_core.training.checkpoints import check

    state = PartialState()
    chosen = checkpoints.newest(lambda folder: check(folder, trainer.trained)) if state.is_main_process else None
    if state.num_processes == 1:
        return None if chosen is None else str(chosen[1])
    (step,) = broadcast_object_list([None if chosen is None else chosen[0]])
    if step is None:
        return None
    with state.local_main_process_first():  # one download a machine
        found = store.find(checkpoints.work(step))
        if found is None:
            raise TransientError(f"the checkpoint of step {step} went away while it was about to be read")
        return str(store.fetch(found.ref))


def _metrics(rows: list[dict[str, Any]], steps: list[dict[str, Any]], spec: Spec) -> dict[str, Any]:
    import torch

    from optune_core.losses import reward_weights

    chosen, rejected = (torch.tensor([row[f"{side}_rewards"] for row in rows]) for side in ("chosen", "rejected"))
    tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return {
        "pairs": len(rows),
        "steps": len(steps),
        "tokens": tokens * spec.training.epochs,
        "micro_batch_size": spec.pairs_at_once,
        "weights/mean": float(reward_weights(chosen, rejected, spec.training.beta2).mean()),
        "first": steps[0] if steps else {},
        "last": steps[-1] if steps else {},
    }
