"""The cost model: formulas against sums done by hand, and the shapes of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optune_core.errors import ModelError, OptuneError
from optune_core.generation.transformers import TransformersEngine
from optune_core.generation.vllm import VllmEngine
from optune_core.losses.best_of_n import BestOfN
from optune_core.plan import STAGES, ModelShape, stage_seconds
from optune_core.plan.cost import running_batch
from optune_core.plan.shape import known_shape
from optune_core.training.spec import Lora
from tests.unit.plan.workloads import DEVICE, SHAPE, TINY, WORK


def train_seconds(**changes: object) -> float:
    return stage_seconds(replace(WORK, training=WORK.training.model_copy(update=changes)), DEVICE, 8)["train"]


def test_forward_pass_counts_body_head_and_attention() -> None:
    assert (SHAPE.embedding, SHAPE.body) == (1000, 10_000)
    assert replace(SHAPE, tied=False).body == 9_000
    assert SHAPE.forward_flops(3, 4.5, 2) == 2 * 10_000 * 3 + 2 * 1_000 * 2 + 4 * 2 * 10 * 4.5
    assert SHAPE.kv_bytes(2) == 2 * 2 * 5 * 2


def test_seconds_of_each_stage_equal_sums_by_hand() -> None:
    seconds = stage_seconds(WORK, DEVICE, 8)
    assert seconds["start engine"] == pytest.approx(3 + 22_000 / 1e5)
    # 16 sequences in batches of 4: 16 steps and 2 more to the longest; 64 tokens with a mean context of 12.
    prefill = 8 * (2 * 10_000 * 10 + 2 * 1_000 + 80 * 50) / 1e6
    reading, products, attention = 18 * 22_000 / 1e5, 16 * 4 * 22_000 / 1e6, 64 * 12 * 40 / 1e5
    assert reading > products
    assert seconds["generate"] == pytest.approx(prefill + reading + attention + 18 * 0.01 + 64 * 0.001)
    assert seconds["score"] == pytest.approx(16 * (2 * 10_000 * 14 + 80 * 98) / 1e6)
    assert seconds["rank and merge"] == 4.0
    # A pair: 18 tokens, 8 logits; 10²/2 + 2 · (4 · 10 + 4²/2) attended positions. 4 passes, 2 updates.
    pair = 2 * 10_000 * 18 + 2 * 1_000 * 8 + 80 * 146
    assert seconds["train"] == pytest.approx(8 * pair * 4 / 2e6 + 2 * 11_000 * 20 / 1e5 + 11_000 * 14 / 1e5)


def test_only_repeatable_generation_waits_for_each_shards_longest_response() -> None:
    def steps(repeatable: bool) -> float:
        engine = VllmEngine(max_num_seqs=4, repeatable=repeatable)
        work = replace(WORK, engine=engine, shard_size=2)  # four shards of four sequences
        slow = stage_seconds(work, replace(DEVICE, step_seconds=1.0), 8)["generate"]
        return slow - stage_seconds(work, replace(DEVICE, step_seconds=0.0), 8)["generate"]

    assert steps(True) == pytest.approx(4 * (4 + 2))
    assert steps(False) == pytest.approx(4 * 4 + 2)


def test_a_large_batch_is_bound_by_its_matrix_products() -> None:
    work = replace(WORK, engine=VllmEngine(max_num_seqs=512), samples=64)
    slow = stage_seconds(work, replace(DEVICE, decode=1e5), 8)["generate"]
    assert slow - stage_seconds(work, replace(DEVICE, decode=2e5), 8)["generate"] == pytest.approx(
        512 * 4 * 22_000 * (1 / 1e5 - 1 / 2e5)
    )


def test_static_batches_run_to_the_longest_and_share_no_prompt() -> None:
    work = replace(WORK, engine=TransformersEngine(batch_size=8))
    # 2 batches of 6 steps; 96 tokens, whether or not their sequence had ended.
    prefill = 16 * (2 * 10_000 * 10 + 2 * 1_000 + 80 * 50) / 1e6
    products, attention = 16 * 6 * 22_000 / 1e6, 96 * 13 * 40 / 1e5
    expected = prefill + max(12 * 22_000 / 1e5, products) + attention + 12 * 0.05
    assert stage_seconds(work, DEVICE, 8)["generate"] == pytest.approx(expected)


def test_training_settings_change_the_number_of_passes() -> None:
    rest = 2 * 11_000 * 20 / 1e5 + 11_000 * 14 / 1e5
    forward = (train_seconds() - rest) / 4
    assert train_seconds(gradient_checkpointing=True) == pytest.approx(5 * forward + rest)
    assert train_seconds(epochs=2) == pytest.approx(7 * forward + rest + 2 * 11_000 * 20 / 1e5)
    assert train_seconds(lora=Lora()) == pytest.approx(3 * forward + 11_000 * 14 / 1e5)
    assert train_seconds(optimizer="adamw_torch") == pytest.approx(4 * forward + rest * 1.0 + 2 * 11_000 * 8 / 1e5)


def test_best_of_n_computes_one_response_and_no_reference() -> None:
    # 10 prompt and 4 response tokens; attention 50 + 40 + 8.
    forward = 8 * (2 * 10_000 * 14 + 2 * 1_000 * 4 + 80 * 98) / 2e6
    rest = 2 * 11_000 * 20 / 1e5 + 11_000 * 14 / 1e5
    assert train_seconds(loss=BestOfN()) == pytest.approx(3 * forward + rest)


def test_padded_training_costs_padding_and_a_second_prompt() -> None:
    padded = 2 * (2 * 11_000 * 18 + 80 * 162)  # 12 + 6 tokens, all with logits
    expected = 8 * padded * 4 / 2e6 + 2 * 11_000 * 20 / 1e5 + 11_000 * 14 / 1e5
    assert stage_seconds(replace(WORK, layout="padded"), DEVICE, 8)["train"] == pytest.approx(expected)


def test_the_memory_for_the_cache_bounds_the_running_batch() -> None:
    # 0.5 · 24,400 − 22,000 bytes of weights would be negative; on two devices 2,400 are left: 560 a sequence.
    engine = VllmEngine(gpu_memory_utilization=0.5, tensor_parallel_size=2)
    work, device = replace(WORK, engine=engine), replace(DEVICE, memory=24_400)
    assert running_batch(work, device) == pytest.approx(2_400 / 560)
    alone = engine.model_copy(update={"tensor_parallel_size": 1})
    with pytest.raises(OptuneError, match=r"raise generation\.engine\.tensor_parallel_size"):
        stage_seconds(replace(work, engine=alone), device, 8)


def test_without_regenerated_prompts_only_merging_and_training_cost_time() -> None:
    seconds = stage_seconds(WORK, DEVICE, 0)
    assert {stage for stage in STAGES if seconds[stage] > 0} == {"rank and merge", "train"}
    assert stage_seconds(replace(WORK, reward=None), DEVICE, 8)["score"] == 0


def test_the_shape_of_a_model_gives_its_number_of_weights(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(**{**TINY, "tie_word_embeddings": tied}))
        model.config.save_pretrained(tmp_path)
        shape = known_shape(str(tmp_path))
        assert shape is not None
        assert shape.parameters == sum(weight.numel() for weight in model.parameters())
        assert (shape.kv_width, shape.tied) == (8, tied)


def test_unsupported_model_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"mixture of experts.*--parameters"):
        ModelShape.from_config({**TINY, "num_local_experts": 8}, "model")
    with pytest.raises(ModelError, match="has no intermediate_size, num_hidden_layers"):
        ModelShape.from_config({"hidden_size": 8, "vocab_size": 9, "num_attention_heads": 2}, "model")
    with pytest.raises(ModelError, match="too small"):
        ModelShape.from_parameters(1000)
    assert known_shape(str(tmp_path)) is None


def test_a_number_of_parameters_gives_a_usual_shape() -> None:
    mistral = known_shape("alignment-handbook/zephyr-7b-sft-full")
    assert mistral is not None
    guessed = ModelShape.from_parameters(mistral.parameters)
    assert guessed.layers == pytest.approx(mistral.layers, rel=0.1)
    assert guessed.kv_bytes(2) == pytest.approx(mistral.kv_bytes(2), rel=0.2)
