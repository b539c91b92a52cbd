"""Stage `reward-model`: a Bradley-Terry reward model (Eq. 1), by TRL's reward trainer."""

from __future__ import annotations

import json
import time
from typing import Any

from pydantic import BaseModel

from optune_core.config.schema import TrainedReward
from optune_core.errors import ModelError
from optune_core.imports import show_all
from optune_core.preferences import accuracy
from optune_core.progress import Progress
from optune_core.schemas import PREFERENCES, read_table
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1


class Spec(BaseModel):
    reward: TrainedReward
    seed: int
    backbone: dict[str, str]
    """Reference to the model that the reward model starts from."""
    preferences: dict[str, str]


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work."""
    names = {"epochs", "learning_rate", "train_batch_size", "frozen_layers", "max_tokens"}
    params = spec.reward.model_dump(mode="json", include=names) | {"seed": spec.seed}
    parents = {"backbone": Ref.from_json(spec.backbone), "preferences": Ref.from_json(spec.preferences)}
    return [Work("reward-model", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train on the training prompts; report the accuracy on the held-out ones beside the length-only baseline."""
    show_all()  # TRL's data sets are those of `datasets`
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    from optune_core.models import load_tokenizer
    from optune_core.rewards.classifier import ClassifierScorer
    from optune_core.training.callbacks import ReportProgress

    (work,) = works(store, spec)
    started = time.monotonic()
    config = spec.reward
    rows = read_table(store.fetch(Ref.from_json(spec.preferences)) / "preferences.parquet", PREFERENCES).to_pylist()
    training = [row for row in rows if not row["held_out"]]
    held_out = [row for row in rows if row["held_out"]]
    folder = store.fetch(Ref.from_json(spec.backbone)) / "model"
    tokenizer: Any = load_tokenizer(folder, config.model)
    set_seed(spec.seed)  # the head is drawn at random
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    _freeze(model, config.frozen_layers)
    cuda = torch.cuda.is_available()
    with store.scratch() as scratch:
        trainer = RewardTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([_conversations(row) for row in training]),
            args=RewardConfig(
                output_dir=str(scratch / "trainer"),
                num_train_epochs=config.epochs,
                learning_rate=config.learning_rate,
                per_device_train_batch_size=config.train_batch_size,
                max_length=config.max_tokens,
                lr_scheduler_type="linear",
                warmup_steps=0.1,
                bf16=True,
                use_cpu=not cuda,
                gradient_checkpointing=False,
                seed=spec.seed,
                logging_steps=5,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            callbacks=[ReportProgress(progress)],
        )
        trainer.train()
        output = scratch / "reward-model" / "model"
        model.save_pretrained(output, safe_serialization=True)
        tokenizer.save_pretrained(output)

        progress("evaluate reward model", 0, 0)
        scorer = ClassifierScorer(output, batch_size=config.batch_size, dtype=config.dtype)
        metrics: dict[str, Any] = {"pairs": len(training), "held_out_pairs": len(held_out)}
        metrics["accuracy/held_out"] = accuracy(*(_scores(scorer, held_out, side) for side in ("chosen", "rejected")))
        metrics["accuracy/length_only"] = _length_only(training, held_out)
        (output.parent / "accuracy.json").write_text(json.dumps(metrics, sort_keys=True))
        store.commit(work, output.parent, metrics=metrics, timing={"seconds": time.monotonic() - started})


def _conversations(row: dict[str, Any]) -> dict[str, Any]:
    return {side: [*row["messages"], {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


def _scores(scorer: Any, rows: list[dict[str, Any]], side: str) -> list[float]:
    from optune_core.rewards.scorer import Conversation

    scores: list[float] = scorer.score(
        [Conversation("", row["messages"], row[side]) for row in rows], lambda done: None
    )
    return scores


def _length_only(training: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> float:
    """Held-out accuracy of "the longer one" or "the shorter one", whichever the training pairs favour."""
    chosen, rejected = ([float(len(row[side])) for row in training] for side in ("chosen", "rejected"))
    sign = 1.0 if accuracy(chosen, rejected) >= 0.5 else -1.0
    return accuracy(*([sign * len(row[side]) for row in held_out] for side in ("chosen", "rejected")))


def _freeze(model: Any, layers: int) -> None:
    if layers == 0:
        return
    stack = getattr(model.base_model, "layers", None)
    if stack is None or layers > len(stack):
        depth = "no" if stack is None else str(len(stack))
        raise ModelError(f"reward.frozen_layers={layers}: the backbone has {depth} layers that can be frozen")
    for module in (model.get_input_embeddings(), *stack[:layers]):
        module.requires_grad_(False)
