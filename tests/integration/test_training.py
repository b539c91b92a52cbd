"""Training against plain computations: exact log-probabilities, exact means, exact resumption."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optune_core.training.batches import Lengths, MicroBatchSampler, PairCollator, compose_micro_batches, in_parts
from optune_core.training.logps import reference_logps, response_logps


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny / "policy", dtype=torch.float32).eval()


def plain_logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One sequence at a time, no padding, all logits."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    logps = logits.log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(response))


token_lists = st.lists(st.integers(3, 300), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(token_lists, token_lists, token_lists), min_size=1, max_size=4))
def test_logps_equal_those_of_one_sequence_at_a_time(model: Any, pairs: list[Any]) -> None:
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    with torch.no_grad():
        ours = response_logps(model, PairCollator(0)(rows)).double()
        plain = [plain_logps(model, p, c) for p, c, _ in pairs] + [plain_logps(model, p, r) for p, _, r in pairs]
    torch.testing.assert_close(ours, torch.stack(plain), rtol=1e-4, atol=1e-4)


def test_gradient_equals_the_plain_one(model: Any) -> None:
    prompt, chosen, rejected = [5, 6, 7], [8, 9, 10, 11], [12, 13]
    rows = [{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}]
    gradients = []
    for loss in (
        lambda: response_logps(model, PairCollator(0)(rows)) @ torch.tensor([1.0, -2.0]),
        lambda: (plain_logps(model, prompt, chosen) - 2 * plain_logps(model, prompt, rejected)).float(),
    ):
        model.zero_grad()
        loss().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1, max_size=40),
    size=st.integers(1, 8),
    seed=st.integers(),
)
def test_every_pair_is_in_one_micro_batch_and_the_sampler_keeps_them_whole(
    lengths: list[tuple[int, int, int]], size: int, seed: int
) -> None:
    groups = compose_micro_batches([Lengths(*each) for each in lengths], size)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sampler = MicroBatchSampler(groups, seed)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert list(sampler) == order
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        assert sorted(batches) == sorted(groups)


@given(pairs=st.integers(1, 9), at_once=st.integers(1, 10))
def test_parts_are_consecutive_pairs_with_both_their_sides(pairs: int, at_once: int) -> None:
    sequences, each = torch.arange(2 * pairs), torch.arange(pairs)
    parts = in_parts({"input_ids": sequences, "chosen_rewards": each}, at_once)
    assert torch.equal(torch.cat([part["chosen_rewards"] for part in parts]), each)
    for part in parts:
        assert 1 <= len(part["chosen_rewards"]) <= at_once
        assert torch.equal(part["input_ids"], torch.cat([part["chosen_rewards"], part["chosen_rewards"] + pairs]))


def test_the_order_changes_from_epoch_to_epoch() -> None:
    sampler = MicroBatchSampler([[i] for i in range(50)], seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3


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
    pairs_at_once: int | None = None,
    **changes: Any,
) -> Any:
    """Train on `rows`.

    Args:
        resume: checkpoint folder to go on from.
        save_at: step after which a checkpoint is written and training stops.
        pairs_at_once: default: whole micro-batches.
        changes: fields of `Training`.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from optune_core.config.schema import Training
    from optune_core.training.trainer import WeightedDPOTrainer, trainer_arguments

    config = Training(
        **{
            "beta1": 0.1,
            "beta2": 1.0,
            "batch_size": 4,
            "micro_batch_size": 2,
            "learning_rate": 1e-4,
            "precision": "float32",
        }
        | changes
    )
    model = AutoModelForCausalLM.from_pretrained(tiny / "policy", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "policy")
    collator = PairCollator(tokenizer.pad_token_id)
    lengths = [Lengths(len(r["prompt_ids"]), len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    groups = compose_micro_batches(lengths, config.micro_batch_size)
    at_once = pairs_at_once or config.micro_batch_size
    precision = getattr(torch, config.precision)
    logps = reference_logps(model.eval(), rows, groups, collator, precision, at_once, lambda done: None)
    rows = [
        row | {"ref_chosen_logps": logps[number][0], "ref_rejected_logps": logps[number][1]}
        for number, row in enumerate(rows)
    ]

    class SaveAndStop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == save_at

    trainer = WeightedDPOTrainer(
        model=model,
        args=trainer_arguments(config, output_dir=str(folder), seed=3, devices=1),
        train_dataset=Dataset.from_list(rows),
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear") if config.lora else None,
        micro_batches=groups,
        pairs_at_once=at_once,
        beta1=config.beta1,
        beta2=config.beta2,
        callbacks=[SaveAndStop()] if save_at else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_loss_is_the_mean_over_all_pairs_of_a_step_however_they_are_split(tiny: Path, tmp_path: Path) -> None:
    rows = dataset(3)  # micro-batches of 2 and 1: their plain mean would weigh the last pair twice
    trajectories = [
        losses(train(tiny, tmp_path / str(size), rows, micro_batch_size=size, epochs=3)) for size in (1, 2, 4)
    ]
    assert len(trajectories[0]) == 3
    assert trajectories[1] == pytest.approx(trajectories[0], rel=1e-5)
    assert trajectories[2] == pytest.approx(trajectories[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pairs_at_once", [4, 3, 1])
def test_first_loss_is_exact_in_either_precision_and_in_any_parts(
    tiny: Path, tmp_path: Path, precision: str, pairs_at_once: int
) -> None:
    options = {"precision": precision, "pairs_at_once": pairs_at_once, "micro_batch_size": 4}
    first = train(tiny, tmp_path, dataset(8), **options).state.log_history[0]
    assert first["loss"] == pytest.approx(first["weights/mean"] * torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_parts_of_a_micro_batch_change_nothing_but_memory(tiny: Path, tmp_path: Path) -> None:
    rows = dataset(11)
    options = {"epochs": 2, "micro_batch_size": 4, "batch_size": 8, "learning_rate": 1e-3}
    whole, parts = [train(tiny, tmp_path / str(at_once), rows, pairs_at_once=at_once, **options) for at_once in (4, 3)]
    assert len(losses(whole)) == 4
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(parts.state.log_history, whole.state.log_history, strict=True):
        for name in set(mine) - {"train_runtime", "train_samples_per_second", "train_steps_per_second"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_non_finite_loss_stops_before_the_step(tiny: Path, tmp_path: Path) -> None:
    from optune_core.errors import NonFiniteLoss

    rows = dataset(4)
    rows[2]["chosen_rewards"] = float("nan")
    with pytest.raises(NonFiniteLoss, match="not finite at step 0"):
        train(tiny, tmp_path, rows)


@pytest.mark.slow
def test_non_finite_gradient_stops_before_the_step(tiny: Path, tmp_path: Path) -> None:
    """At a margin of 0 the loss is R·ln 2 whatever β₁ is; its gradient is proportional to β₁ and overflows."""
    from optune_core.errors import NonFiniteLoss
    from optune_core.training import trainer

    trainers = []
    made = trainer.WeightedDPOTrainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainers.append((self, {name: value.clone() for name, value in self.model.state_dict().items()}))
        return made(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.WeightedDPOTrainer, "train", remember)
        with pytest.raises(NonFiniteLoss, match=r"norm of the gradient is (inf|nan) at step 0"):
            train(tiny, tmp_path, dataset(4), beta1=1e38, save_at=1)
    ((stopped, before),) = trainers
    torch.testing.assert_close(stopped.model.state_dict(), before, rtol=0, atol=0)
    assert any(not parameter.grad.isfinite().all() for parameter in stopped.model.parameters())
    assert list(tmp_path.rglob("checkpoint-*")) == []


@pytest.mark.slow
def test_training_raises_the_chosen_and_is_pinned(tiny: Path, tmp_path: Path) -> None:
    """Drift guard: the losses of a fixed data set, wide enough for another CPU, far too narrow for another loss."""
    trainer = train(tiny, tmp_path, dataset(8), epochs=4, learning_rate=1e-3)
    trajectory = losses(trainer)
    pinned = json.loads((Path(__file__).parent / "trajectory.json").read_text())
    assert trajectory == pytest.approx(pinned, rel=1e-3)
    assert trainer.state.log_history[-2]["rewards/margins"] > 0.1
