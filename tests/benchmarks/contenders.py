"""The trainers that are compared on the same pairs: this project's, and TRL's DPOTrainer as configured.

Run as `python -m tests.benchmarks.contenders JOB`, JOB a JSON object; prints one JSON object. Each run is a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIXES = {
    # (mean and spread of the logarithm, shortest, longest) of the tokens of a prompt and of a response
    "short": ((4.3, 0.55, 8, 424), (3.25, 1.3, 1, 305)),  # like PandaLM's test set: 89 and 51 on average
    "ultrachat": ((5.1, 0.7, 16, 512), (5.75, 0.5, 16, 512)),  # about 200 and 330
    "long": ((6.5, 0.4, 128, 1024), (6.5, 0.4, 128, 1024)),  # about 700 and 700
}
BETA, LEARNING_RATE, SEED = 0.1, 1e-5, 0


def pairs(mix: str, count: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return token ids of pairs, the same for every contender."""
    generator = random.Random(f"{mix}/{count}")
    prompt, response = MIXES[mix]

    def ids(mean: float, spread: float, shortest: int, longest: int) -> list[int]:
        length = min(max(round(generator.lognormvariate(mean, spread)), shortest), longest)
        return [generator.randrange(3, vocabulary) for _ in range(length)]

    return [
        {"prompt_ids": ids(*prompt), "chosen_ids": ids(*response), "rejected_ids": ids(*response)} for _ in range(count)
    ]


def load(model: str) -> Any:
    """Load a causal language model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def order(rows: list[dict[str, list[int]]], batch_size: int) -> list[dict[str, list[int]]]:
    """Return the order of the pairs in this project's plan of steps, which both trainers follow."""
    from optune_core.training.batches import plan_steps

    steps = plan_steps([1] * len(rows), batch_size=batch_size, micro_batch_tokens=1, processes=1, seed=SEED, epoch=0)
    return [rows[row] for step in steps for pack in step[0] for row in pack.rows]


def stop_watch() -> Any:
    """Return a callback of a trainer that notes when each step ended."""
    from transformers import TrainerCallback

    class StopWatch(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    return StopWatch()


def seconds_a_pair(reference_seconds: float, ends: list[float], pairs: int, batch_size: int) -> float:
    """Return the seconds a pair of the reference pass, if it is separate, and of the steps after the first."""
    return reference_seconds / pairs + (ends[-1] - ends[0]) / (pairs - batch_size)


def ours(model: Any, rows: list[dict[str, list[int]]], job: dict[str, Any], folder: Path) -> tuple[float, list[float]]:
    """Return seconds a pair, and the losses."""
    import pyarrow as pa
    import torch

    from optune_core.training.batches import plan_steps
    from optune_core.training.layout import TokenPairs
    from optune_core.training.logps import choose_kernel, compute_inside
    from optune_core.training.reference import reference_logps, shards_of
    from optune_core.training.spec import Training
    from optune_core.training.trainer import PairData, PolicyTrainer, trainer_arguments

    config = Training(
        loss={"type": "wdpo", "beta1": BETA, "beta2": 0.0},
        batch_size=job["batch_size"],
        micro_batch_tokens=job["micro_batch_tokens"],
        optimizer="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        schedule="constant_with_warmup",
        warmup_ratio=0.0,
        precision=job["precision"],
    )
    precision, device = getattr(torch, config.precision), next(model.parameters()).device
    pairs_of_rows = TokenPairs(
        pa.table(
            {
                f"{side}_token_ids": pa.array([row[f"{side}_ids"] for row in rows], pa.list_(pa.int32()))
                for side in ("prompt", "chosen", "rejected")
            }
        )
    )
    compute_inside(model, choose_kernel(model, precision))
    started = time.perf_counter()
    steps = plan_steps(
        pairs_of_rows.tokens(prompt_once=True).tolist(),
        batch_size=config.batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        processes=1,
        seed=SEED,
        epoch=0,
    )
    logps: dict[int, tuple[float, float]] = {}
    for shard in shards_of(steps, config.batch_size):
        for pack in shard:
            logps |= reference_logps(model.eval(), device, pairs_of_rows, pack, precision)
    reference_seconds = time.perf_counter() - started
    data = PairData(pairs_of_rows, torch.tensor([logps[row] for row in range(len(rows))]).T, torch.zeros(2, len(rows)))
    trainer = PolicyTrainer(
        model=model,
        args=trainer_arguments(config, output_dir=str(folder), seed=SEED),
        config=config,
        steps=steps,
        data=data,
        epochs=1,
        callbacks=[watch := stop_watch()],
    )
    trainer.train()
    seconds = seconds_a_pair(reference_seconds, watch.ends, len(rows), job["batch_size"])
    return seconds, [2 * entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # β₂ = 0 halves it


def trl(model: Any, rows: list[dict[str, list[int]]], job: dict[str, Any], folder: Path) -> tuple[float, list[float]]:
    """Return seconds a pair, and the losses."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    reference_seconds = 0.0

    class OnTokens(DPOTrainer):  # type: ignore[misc]
        """TRL's trainer on token ids in a given order."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Dataset:
            nonlocal reference_seconds
            started = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args)
            reference_seconds += time.perf_counter() - started
            return dataset

        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    each = min(job["options"].get("per_device_train_batch_size", 8), job["batch_size"])
    options = job["options"] | {"per_device_train_batch_size": each}
    trainer = OnTokens(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            gradient_accumulation_steps=job["batch_size"] // each,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            lr_scheduler_type="constant_with_warmup",
            bf16=job["precision"] == "bfloat16",
            max_length=None,
            num_train_epochs=1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=job["device"] == "cpu",
            **options,
        ),
        train_dataset=Dataset.from_list(order(rows, job["batch_size"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[watch := stop_watch()],
    )
    trainer.train()
    seconds = seconds_a_pair(reference_seconds, watch.ends, len(rows), job["batch_size"])
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    """Run the contender of the job, and print what was measured."""
    import torch

    from optune_core.process.malloc import keep_freed_memory

    job = json.loads(sys.argv[1])
    run = ours if job["contender"] == "ours" else trl
    if job["keep_freed_memory"]:
        keep_freed_memory()
    model = load(job["model"]).to(job["device"])
    rows = pairs(job["mix"], job["pairs"], model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        seconds, losses = run(model, rows, job, Path(folder))
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    tokens = sum(len(ids) for row in rows for ids in row.values())
    rate = tokens / len(rows) / seconds
    result = {"seconds_per_pair": seconds, "tokens_per_second": rate, "peak_mib": peak}
    print(json.dumps(result | {"losses": losses}))


if __name__ == "__main__":
    main()
