"""Losses and gradients of training against TRL, transformers and the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.training.sequences import load, plain_logps
from tests.integration.training.trainings import HYPO, SAMPLES, dataset, train
from tests.tiny import WDPO


@pytest.mark.slow
def test_training_at_beta2_zero_has_half_the_loss_and_gradient_of_trl(tiny: Path, tmp_path: Path) -> None:
    """TRL trains on the same pairs in the same order."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

    rows = dataset(8)
    ours = train(tiny, tmp_path / "ours", rows, loss=WDPO | {"beta2": 0.0}, batch_size=8)
    theirs = OnTokens(
        model=load(tiny),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=8,
            beta=0.1,
            bf16=False,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny / "policy"),
    )
    theirs.train()
    mine, trl = ours.state.log_history[0], theirs.state.log_history[0]
    assert mine["loss"] == pytest.approx(0.5 * trl["loss"], rel=1e-5)
    assert mine["grad_norm"] == pytest.approx(0.5 * trl["grad_norm"], rel=1e-3)
    for name in ("logps/chosen", "logps/rejected"):
        assert mine[name] == pytest.approx(trl[name], rel=1e-4)


@pytest.mark.slow
def test_best_of_n_equals_the_supervised_loss_of_transformers(tiny: Path, tmp_path: Path) -> None:
    """The reference is the model's own loss on a padded batch of chosen responses with the prompts masked."""
    rows = dataset(8)
    ours = train(tiny, tmp_path / "ours", rows, loss={"type": "best_of_n"}, batch_size=8)
    model = load(tiny)
    width = max(len(row["prompt_ids"] + row["chosen_ids"]) for row in rows)
    padded = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        prompt, chosen = row["prompt_ids"], row["chosen_ids"]
        padding = width - len(prompt + chosen)
        padded["input_ids"].append(prompt + chosen + [0] * padding)
        padded["labels"].append([-100] * len(prompt) + chosen + [-100] * padding)
        padded["attention_mask"].append([1] * len(prompt + chosen) + [0] * padding)
    loss = model(**{name: torch.tensor(value) for name, value in padded.items()}).loss
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    first = ours.state.log_history[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert first["rm/chosen"] == pytest.approx(sum(row["chosen_rewards"] for row in rows) / 8)
    assert not [name for name in first if "rejected" in name or "weights" in name or name.startswith("rewards/")]

    others = [row | {"rejected_ids": [9], "rejected_rewards": 7.0} for row in rows]
    again = train(tiny, tmp_path / "again", others, loss={"type": "best_of_n"}, batch_size=8)
    assert again.state.log_history[:-1] == ours.state.log_history[:-1]


@pytest.mark.slow
def test_hypo_training_equals_its_equation(tiny: Path, tmp_path: Path) -> None:
    """The step has pairs and online samples; the reference takes one sequence at a time."""
    from optune_core.losses.equations import dpo_losses, hypo_loss, reverse_kl_losses

    rows = dataset(5)
    generator = torch.Generator().manual_seed(0)
    reference = -30 * torch.rand(2, 9, generator=generator)
    reference[1, 5:] = 0.0  # of an empty response
    ours = train(tiny, tmp_path, rows, **HYPO, reference=reference, batch_size=9)
    model = load(tiny)
    chosen, rejected = (
        torch.stack([plain_logps(model, row["prompt_ids"], row[f"{side}_ids"]) for row in rows]).float()
        for side in ("chosen", "rejected")
    )
    online = torch.stack([plain_logps(model, *sample) for sample in SAMPLES]).float()
    loss = hypo_loss(chosen, rejected, reference[0, :5], reference[1, :5], online, reference[0, 5:], 0.1, 0.3)
    metrics = dpo_losses(chosen, rejected, reference[0, :5], reference[1, :5], 0.1)[1]
    metrics |= reverse_kl_losses(online, reference[0, 5:])[1]
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    first = ours.state.log_history[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    for name, value in metrics.items():
        assert first[name] == pytest.approx(value.mean().item(), rel=1e-4), name
    assert first["rm/chosen"] == pytest.approx(sum(row["chosen_rewards"] for row in rows) / 5)


@pytest.mark.slow
def test_hypo_starts_at_ln_2_where_the_policy_is_the_reference(tiny: Path, tmp_path: Path) -> None:
    first = train(tiny, tmp_path, dataset(4), **HYPO, batch_size=8).state.log_history[0]
    assert first["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert first["kl"] == 0.0


@pytest.mark.slow
def test_hypo_brings_an_overrated_sample_back_to_the_reference(tiny: Path, tmp_path: Path) -> None:
    rows, model = dataset(4), load(tiny)
    with torch.no_grad():
        online = torch.stack([plain_logps(model, *sample) for sample in SAMPLES]).float()
    reference = torch.zeros(2, 8)
    reference[0, 4:] = online - 2.0
    changes = {"loss": HYPO["loss"] | {"beta1": 1e-6}, "epochs": 6, "batch_size": 8, "learning_rate": 2e-5}
    log = train(tiny, tmp_path, rows, **HYPO | changes, reference=reference).state.log_history
    assert log[0]["kl"] == pytest.approx(2.0, abs=1e-3)
    assert log[-2]["kl"] < 1.8


@pytest.mark.slow
def test_best_of_n_learns_the_winners(tiny: Path, tmp_path: Path) -> None:
    trainer = train(tiny, tmp_path, dataset(8), loss={"type": "best_of_n"}, epochs=4, learning_rate=1e-3)
    log = trainer.state.log_history
    assert log[-2]["loss"] < 0.9 * log[0]["loss"]
    assert log[-2]["logps/chosen"] > log[0]["logps/chosen"]
