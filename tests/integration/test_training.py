"""Training against plain computations: exact log-probabilities, exact means, exact resumption."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.training.batches import plan_steps
from optune_core.training.layout import Pairs
from optune_core.training.logps import KERNELS, PLAIN, choose_kernel, compute_inside, row_logps
from optune_core.training.reference import reference_logps, shards_of


def load(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny / "policy", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    """With its own forward pass."""
    return load(tiny)


@pytest.fixture(scope="module")
def packed_model(tiny: Path) -> Any:
    model = load(tiny)
    compute_inside(model, "sdpa")
    return model


def plain_logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One sequence at a time, no padding, all logits."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    logps = logits.log_softmax(-1)
    return sum((logps[len(prompt) + i - 1, token] for i, token in enumerate(response)), logps.new_zeros(()))


def pairs_of(triples: list[Any], rejected: bool = True) -> Pairs:
    """Of (prompt, chosen, rejected) token ids; without the last one if not `rejected`."""
    columns = zip(*triples, strict=True)
    names = ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids")
    return Pairs(
        pa.table({name: pa.array(ids, pa.list_(pa.int32())) for name, ids in zip(names, columns, strict=True)}),
        rejected=rejected,
    )


tokens = st.integers(3, 300)


def any_response(triples: list[Any]) -> bool:
    """Whether there is anything to differentiate."""
    return any(chosen or rejected for _, chosen, rejected in triples)


prompts, responses = st.lists(tokens, min_size=1, max_size=20), st.lists(tokens, max_size=14)


@settings(max_examples=60, deadline=None)
@given(triples=st.lists(st.tuples(prompts, responses, responses), min_size=1, max_size=5))
def test_packed_logps_equal_those_of_one_sequence_at_a_time(model: Any, packed_model: Any, triples: list[Any]) -> None:
    with torch.no_grad():
        chosen, rejected = row_logps(packed_model, pairs_of(triples).row(range(len(triples))))
        torch.testing.assert_close(
            chosen.double(), torch.stack([plain_logps(model, p, c) for p, c, _ in triples]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            rejected.double(), torch.stack([plain_logps(model, p, r) for p, _, r in triples]), rtol=1e-4, atol=1e-4
        )


@settings(max_examples=10, deadline=None)
@given(triples=st.lists(st.tuples(prompts, responses, responses), min_size=1, max_size=4).filter(any_response))
def test_gradients_of_the_whole_loss_equal_the_plain_ones(model: Any, packed_model: Any, triples: list[Any]) -> None:
    from optune_core.losses.equations import wdpo_losses

    count = len(triples)
    rest = [torch.linspace(-9, 3, count), torch.linspace(1, -7, count), torch.ones(count), torch.arange(count) - 1.0]
    plain = [torch.stack([plain_logps(model, t[0], t[side]) for t in triples]).float() for side in (1, 2)]
    gradients = []
    for of, policy in ((packed_model, row_logps(packed_model, pairs_of(triples).row(range(count)))), (model, plain)):
        losses, _ = wdpo_losses(*policy, *rest, beta1=0.5, beta2=1.0)
        of.zero_grad()
        losses.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in of.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_logits_in_chunks_change_nothing(packed_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from optune_core.training import head

    row = pairs_of([([5, 6, 7], [8, 9, 10, 11], [12, 13]), ([14], [15] * 7, [])]).row([0, 1])
    results = []
    for chunk, block in ((1 << 26, 1 << 22), (320 * 4, 320 * 3), (1, 1)):  # 320 tokens in the vocabulary
        monkeypatch.setattr(head, "_CHUNK", chunk)
        monkeypatch.setattr(head, "_BLOCK", block)
        packed_model.zero_grad()
        chosen, rejected = row_logps(packed_model, row)
        (chosen - 2 * rejected).sum().backward()
        results.append([chosen, rejected, *[p.grad.clone() for p in packed_model.parameters()]])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (3, 9), (4, 5), (8, 8), (1, 1)])
def test_attention_in_products_is_torchs_own(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, window: int | None
) -> None:
    from optune_core.training import attention

    monkeypatch.setattr(attention, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 4, queries, 8), (1, 2, keys, 8), (1, 2, keys, 8)
    inputs = [torch.randn(*shape, generator=generator, requires_grad=True) for shape in shapes]
    results = []
    for attend in (attention._in_products, attention._fused):
        output = attend(*inputs, window, 0.3)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for products, fused in zip(*results, strict=True):
        torch.testing.assert_close(products, fused)


@pytest.mark.parametrize("cast_weights", [True, False])
@pytest.mark.parametrize("block", [5, 256])
def test_half_precision_is_single_precision_but_for_its_noise(
    tiny: Path, packed_model: Any, monkeypatch: pytest.MonkeyPatch, cast_weights: bool, block: int
) -> None:
    """Whether attention is whole or in blocks, weights cast once or by every operation; gradients are float32."""
    from optune_core.training import attention

    monkeypatch.setattr(attention, "_BLOCK", block)
    half = load(tiny)
    compute_inside(half, "sdpa", cast_weights=cast_weights)
    row = pairs_of([(list(range(9)), [8, 9, 10], [12] * 5), (list(range(20, 33)), [15] * 7, [])]).row([0, 1])
    results = []
    for model, on in ((packed_model, False), (half, True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            chosen, rejected = row_logps(model, row)
        (chosen - 2 * rejected).sum().backward()
        results.append((torch.cat([chosen, rejected]).detach(), [p.grad for p in model.parameters()]))
    (expected, exact), (found, rounded) = results
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory_and_roundings(tiny: Path, tmp_path: Path) -> None:
    rows = dataset(8)
    with_it, without = (
        train(tiny, tmp_path / str(on), rows, gradient_checkpointing=on, precision="bfloat16") for on in (True, False)
    )
    assert with_it.model.is_gradient_checkpointing and not without.model.is_gradient_checkpointing
    assert losses(with_it) == pytest.approx(losses(without), rel=1e-2)
    for trainer in (with_it, without):  # policy and reference took the same path
        first = trainer.state.log_history[0]
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0


def test_a_row_of_winners_has_a_sequence_each(packed_model: Any) -> None:
    """What a kernel is handed where the rejected responses are empty: no sequence of none."""
    triples = [([5, 6, 7], [8, 9], [10]), ([14], [15] * 7, [3, 4])]
    row = pairs_of(triples, rejected=False).row([0, 1])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 14, *[15] * 7]]
    sequences = row.sequences
    assert sequences.query_offsets.tolist() == sequences.key_offsets.tolist() == [0, 5, 13]
    assert sequences.keys.tolist() == list(range(13))
    chosen, rejected = row_logps(packed_model, row)
    expected, _ = row_logps(packed_model, pairs_of(triples).row([0, 1]))
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-4)
    assert rejected.tolist() == [0.0, 0.0]


def test_a_sliding_window_is_kept(tiny: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4}
    shape |= {"vocab_size": 320, "num_key_value_heads": 2, "sliding_window": 6, "initializer_range": 0.2}
    own, ours = (MistralForCausalLM(MistralConfig(**shape)).eval() for _ in range(2))
    ours.load_state_dict(own.state_dict())
    triples = [(list(range(3, 20)), list(range(30, 42)), list(range(50, 59))), ([7, 8], [9], [10, 11, 12])]
    compute_inside(ours, "sdpa")
    with torch.no_grad():
        chosen, rejected = row_logps(ours, pairs_of(triples).row([0, 1]))
        expected = [torch.stack([plain_logps(own, t[0], t[side]) for t in triples]).float() for side in (1, 2)]
    torch.testing.assert_close([chosen, rejected], expected, rtol=1e-4, atol=1e-4)


def test_the_kernel_is_tried_out_and_a_model_that_cannot_be_packed_is_computed_plainly(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny)
    assert choose_kernel(model, torch.float32) == "sdpa"
    assert choose_kernel(model, torch.bfloat16) == "sdpa"
    assert model.config._attn_implementation == "sdpa"  # transformers' own again

    row = pairs_of([([5, 6, 7], [8, 9, 10, 11], [12, 13]), ([14], [15] * 7, [3])]).row([0, 1])
    with torch.no_grad():
        expected = [
            torch.stack([plain_logps(model, [5, 6, 7], [8, 9, 10, 11]), plain_logps(model, [14], [15] * 7)]).float(),
            torch.stack([plain_logps(model, [5, 6, 7], [12, 13]), plain_logps(model, [14], [3])]).float(),
        ]
        head = model.forward

        def scaled(**kwargs: Any) -> Any:
            output = head(**kwargs)
            output.logits = output.logits * 0.5
            return output

        model.forward = scaled  # its logits, of which the packed way knows nothing
        assert choose_kernel(model, torch.float32) == PLAIN
        model.forward = head
        compute_inside(model, PLAIN)
        torch.testing.assert_close(list(row_logps(model, row)), expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_leaks_between_the_responses_is_not_chosen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trial is for: here the rejected response also sees the chosen one."""
    import torch.nn.functional as F

    def leaks(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **kwargs: Any) -> Any:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("optune_sdpa", leaks)
    try:
        assert choose_kernel(load(tiny), torch.float32) == PLAIN
    finally:
        AttentionInterface.register("optune_sdpa", KERNELS["sdpa"])


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@settings(max_examples=200)
@given(lengths, st.integers(1, 20), st.integers(1, 150), st.integers(1, 5), st.integers(0, 3))
def test_a_plan_counts_every_pair_once_within_the_budget_and_deals_it_out_evenly(
    lengths: list[int], batch_size: int, budget: int, processes: int, epoch: int
) -> None:
    steps = plan_steps(
        lengths, batch_size=batch_size, micro_batch_tokens=budget, processes=processes, seed=1, epoch=epoch
    )
    counted = [[row for process in step for pack in process if pack.counted for row in pack.rows] for step in steps]
    assert sorted(row for step in counted for row in step) == list(range(len(lengths)))
    assert [len(step) for step in counted[:-1]] == [batch_size] * (len(steps) - 1)
    for step in steps:
        assert len(step) == processes
        assert len({len(process) for process in step}) == 1
        for pack in (pack for process in step for pack in process):
            assert pack.rows
            assert len(pack.rows) == 1 or sum(lengths[row] for row in pack.rows) <= budget


@settings(max_examples=50)
@given(lengths, st.integers(1, 20))
def test_a_pair_is_in_the_same_step_whatever_the_budget_and_the_processes(lengths: list[int], batch_size: int) -> None:
    def members(budget: int, processes: int) -> list[list[int]]:
        steps = plan_steps(
            lengths, batch_size=batch_size, micro_batch_tokens=budget, processes=processes, seed=1, epoch=0
        )
        return [sorted({row for process in step for pack in process for row in pack.rows}) for step in steps]

    assert members(50, 1) == members(1000, 1) == members(50, 4)


def test_processes_get_about_as_many_tokens() -> None:
    generator = random.Random(0)
    lengths = [generator.randrange(100, 1500) for _ in range(1280)]
    for step in plan_steps(lengths, batch_size=128, micro_batch_tokens=8192, processes=8, seed=0, epoch=0):
        loads = [sum(lengths[row] for pack in process for row in pack.rows) for process in step]
        assert max(loads) < 1.02 * sum(loads) / len(loads)
        assert len(step[0]) == -(-sum(loads) // (8 * 8192))  # in as few rounds as can be


def test_the_order_changes_from_epoch_to_epoch_and_is_the_same_again() -> None:
    def plan(epoch: int) -> Any:
        return plan_steps([1] * 50, batch_size=5, micro_batch_tokens=9, processes=1, seed=0, epoch=epoch)

    assert len({str(plan(epoch)) for epoch in range(3)}) == 3
    assert plan(1) == plan(1)


def test_shards_of_the_reference_pass_are_whole_steps_and_all_of_them() -> None:
    for rows, batch_size in ((1, 4), (511, 3), (2000, 128), (2000, 600)):
        steps = plan_steps([7] * rows, batch_size=batch_size, micro_batch_tokens=50, processes=2, seed=0, epoch=0)
        shards = shards_of(steps, batch_size)
        found = [row for shard in shards for pack in shard for row in pack.rows]
        assert sorted(found) == list(range(rows))
        assert all(sum(len(pack.rows) for pack in shard) <= max(512, batch_size) for shard in shards)
        left = shards_of(steps, batch_size, known=range(0, rows, 2))
        assert sorted(row for shard in left for pack in shard for row in pack.rows) == list(range(1, rows, 2))


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

    from optune_core.config.schema import Training
    from optune_core.training.objectives import OBJECTIVES
    from optune_core.training.trainer import PairData, PolicyTrainer, trainer_arguments, with_adapter

    config = Training(
        **{
            "beta1": 0.1,
            "beta2": 1.0,
            "batch_size": 4,
            "micro_batch_tokens": 50,
            "learning_rate": 1e-4,
            "precision": "float32",
        }
        | changes
    )
    model, objective = load(tiny), OBJECTIVES[config.loss]
    compute_inside(model, kernel, cast_weights=not config.gradient_checkpointing)
    triples = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]
    triples += [(*sample, []) for sample in samples]
    pairs = pairs_of(triples, objective.needs_rejected)
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
    if reference is None and objective.needs_reference:
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


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wdpo", "best_of_n", "hypo"])
def test_packing_changes_nothing_but_memory(tiny: Path, tmp_path: Path, loss: str) -> None:
    """Neither the loss, however many pairs a pack has, nor its gradient; nor does computing without packing."""
    rows = dataset(7 if loss == "hypo" else 11)
    options: dict[str, Any] = HYPO if loss == "hypo" else {"loss": loss}
    options = options | {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    trainers = [
        train(tiny, tmp_path / f"{budget}{kernel}", rows, micro_batch_tokens=budget, kernel=kernel, **options)
        for budget, kernel in ((1000, "sdpa"), (60, "sdpa"), (1, "sdpa"), (60, PLAIN))
    ]
    assert len(losses(trainers[0])) == 4
    for other in trainers[1:]:
        assert losses(other) == pytest.approx(losses(trainers[0]), rel=1e-5)
        torch.testing.assert_close(other.model.state_dict(), trainers[0].model.state_dict(), rtol=1e-3, atol=1e-5)
        for mine, theirs in zip(other.state.log_history[:-1], trainers[0].state.log_history[:-1], strict=True):
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_training_equals_trl_at_beta2_zero(tiny: Path, tmp_path: Path) -> None:
    """The field's own trainer on the same pairs in the same order: half its loss and gradient."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

    rows = dataset(8)
    ours = train(tiny, tmp_path / "ours", rows, beta2=0.0, batch_size=8)
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
    """The model's own loss on a padded batch with the prompts masked, and its gradient; rejected responses are none."""
    rows = dataset(8)
    ours = train(tiny, tmp_path / "ours", rows, loss="best_of_n", beta1=None, beta2=None, batch_size=8)
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
    again = train(tiny, tmp_path / "again", others, loss="best_of_n", batch_size=8)
    assert again.state.log_history[:-1] == ours.state.log_history[:-1]


SAMPLES = [([5, 6, 7], [8, 9, 10, 11]), ([14], [15] * 7), ([20, 21], [22]), ([30], [31, 32, 33])]
HYPO = {"loss": "hypo", "kl_coefficient": 0.3, "beta2": None, "samples": SAMPLES}


@pytest.mark.slow
def test_hypo_equals_its_equation(tiny: Path, tmp_path: Path) -> None:
    """Loss and gradient of a step that has pairs and online samples, one sequence at a time."""
    from optune_core.losses.equations import hypo_loss

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
    loss, metrics = hypo_loss(chosen, rejected, reference[0, :5], reference[1, :5], online, reference[0, 5:], 0.1, 0.3)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    first = ours.state.log_history[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    for name, value in metrics.items():
        assert first[name] == pytest.approx(value.item(), rel=1e-4), name
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
    options = HYPO | {"beta1": 1e-6, "epochs": 6, "batch_size": 8, "learning_rate": 2e-5}
    log = train(tiny, tmp_path, rows, **options, reference=reference).state.log_history
    assert log[0]["kl"] == pytest.approx(2.0, abs=1e-3)
    assert log[-2]["kl"] < 1.8


@pytest.mark.slow
def test_best_of_n_learns_the_winners(tiny: Path, tmp_path: Path) -> None:
    trainer = train(tiny, tmp_path, dataset(8), loss="best_of_n", epochs=4, learning_rate=1e-3)
    log = trainer.state.log_history
    assert log[-2]["loss"] < 0.9 * log[0]["loss"]
    assert log[-2]["logps/chosen"] > log[0]["logps/chosen"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batch_tokens", [1000, 50, 1])
def test_first_loss_is_exact_in_either_precision_and_packing(
    tiny: Path, tmp_path: Path, precision: str, micro_batch_tokens: int
) -> None:
    options = {"precision": precision, "micro_batch_tokens": micro_batch_tokens}
    first = train(tiny, tmp_path, dataset(8), **options).state.log_history[0]
    assert first["loss"] == pytest.approx(first["weights/mean"] * torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


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
    made = trainer.PolicyTrainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainers.append((self, {name: value.clone() for name, value in self.model.state_dict().items()}))
        return made(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.PolicyTrainer, "train", remember)
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
