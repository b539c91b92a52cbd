"""Stage `reward-model`: a Bradley-Terry reward model (Eq. 1), trained by TRL's RewardTrainer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from optune_core.data.preferences import accuracy
from optune_core.data.schemas import PREFERENCES, read_table
from optune_core.data.shards import PREFERENCES_FILE
from optune_core.errors import DataError, ModelError
from optune_core.process.hidden_imports import show_all
from optune_core.process.progress import Progress
from optune_core.rewards.trained import TrainedReward
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2
_SIDES = ("chosen", "rejected")


class Spec(BaseModel):
    """Spec of the stage."""

    reward: TrainedReward
    seed: int
    backbone: Ref
    """The model that the reward model starts from."""
    preferences: Ref
    """The pairs of the stage `preferences`."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage."""
    names = {"epochs", "learning_rate", "train_batch_size", "frozen_layers", "max_tokens"}
    params = spec.reward.model_dump(mode="json", include=names) | {"seed": spec.seed}
    parents = {"backbone": spec.backbone, "preferences": spec.preferences}
    return [Work("reward-model", VERSION, params, parents)]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Train on the pairs of the training prompts, and measure the accuracy on those of the held-out prompts.

    The accuracy of a rule that looks only at lengths is measured as its baseline. Pairs of which one side has more
    tokens than `reward.max_tokens`, or than the backbone has positions for, are left out and counted.

    Raises:
        ModelError: the backbone has fewer layers than `reward.frozen_layers`.
        DataError: no pair is short enough to train on, or none to measure the accuracy on.
    """
    show_all()  # TRL imports `datasets`
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    from optune_core.data.model_folder import conversation_token_ids, load_tokenizer, most_tokens
    from optune_core.rewards.classifier_scorer import ClassifierScorer
    from optune_core.training.callbacks import ReportProgress

    (work,) = works(store, spec)
    started = time.monotonic()
    config = spec.reward
    folder = store.fetch(spec.backbone) / "model"
    tokenizer: Any = load_tokenizer(folder, config.model)
    set_seed(spec.seed)  # the weights of the head are drawn at random
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    most = min(config.max_tokens, most_tokens(model))
    _freeze(model, config.frozen_layers)

    def tokenized(row: dict[str, Any]) -> dict[str, list[int]]:
        return {f"{side}_ids": conversation_token_ids(tokenizer, row["messages"], row[side]) for side in _SIDES}

    def fits(row: dict[str, Any]) -> bool:
        return all(len(row[f"{side}_ids"]) <= most for side in _SIDES)

    rows = read_table(store.fetch(spec.preferences) / PREFERENCES_FILE, PREFERENCES).to_pylist()
    fitting = Dataset.from_list(rows).map(tokenized).filter(fits)
    training, held_out = (fitting.filter(lambda row, value=value: row["held_out"] == value) for value in (False, True))
    for purpose, part in (("train on", training), ("measure the accuracy on", held_out)):
        if not len(part):
            raise DataError(
                f"none of the pairs to {purpose} fits into {most} tokens, the smaller of reward.max_tokens and the "
                f"positions of {config.model!r}; {len(rows) - len(fitting)} of all {len(rows)} pairs are longer: raise "
                "reward.max_tokens, take a backbone with more positions, or give shorter pairs"
            )
    cuda = torch.cuda.is_available()
    with store.scratch() as scratch:
        trainer = RewardTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=training.select_columns([f"{side}_ids" for side in _SIDES]),
            args=RewardConfig(
                output_dir=str(scratch / "trainer"),
                num_train_epochs=config.epochs,
                learning_rate=config.learning_rate,
                per_device_train_batch_size=config.train_batch_size,
                max_length=None,  # longer pairs are left out above, and counted
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
        metrics["too_long_pairs"] = len(rows) - len(fitting)
        metrics["accuracy/held_out"] = accuracy(*(_scores(scorer, held_out, side) for side in _SIDES))
        metrics["accuracy/length_only"] = _length_only(training, held_out)
        (output.parent / "accuracy.json").write_text(json.dumps(metrics, sort_keys=True))
        store.commit(work, output.parent, metrics=metrics, timing={"seconds": time.monotonic() - started})


def _scores(scorer: Any, rows: Iterable[dict[str, Any]], side: str) -> list[float]:
    from optune_core.rewards import Conversation

    scores: list[float] = scorer.score(
        [Conversation("", row["messages"], row[side]) for row in rows], lambda done: None
    )
    return scores


def _length_only(training: Any, held_out: Any) -> float:
    """Return the held-out accuracy of "the longer one" or "the shorter one", whichever the training pairs favour."""
    chosen, rejected = ([float(len(text)) for text in training[side]] for side in _SIDES)
    sign = 1.0 if accuracy(chosen, rejected) >= 0.5 else -1.0
    return accuracy(*([sign * len(text) for text in held_out[side]] for side in _SIDES))


def _freeze(model: Any, layers: int) -> None:
    if layers == 0:
        return
    stack = getattr(model.base_model, "layers", None)
    if stack is None or layers > len(stack):
        depth = "no" if stack is None else str(len(stack))
        raise ModelError(f"reward.frozen_layers={layers}: the backbone has {depth} layers that can be frozen. Lower it")
    for module in (model.get_input_embeddings(), *stack[:layers]):
        module.requires_grad_(False)


STAGE = Stage("reward-model", Spec, works, run)
