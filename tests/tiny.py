"""A tiny, randomly initialised Llama with a real byte-level BPE tokenizer, so small that every test can train it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WDPO = {"type": "wdpo", "beta1": 0.1, "beta2": 1.0}
PROMPTS = [
    f"{verb} {thing}"
    for verb in ("Explain", "Describe", "Compare two kinds of", "List the uses of", "Write about")
    for thing in ("rain", "bread", "the sea", "old maps", "a good chair", "clocks", "winter")
]


def build_model(folder: Path, *, chat_template: bool = True, labels: int | None = None, seed: int = 0) -> Path:
    """Write a model folder: a causal language model, or a sequence classifier with `labels` logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = _tokenizer(chat_template)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # wide, so that samples differ and rewards spread
    }
    torch.manual_seed(seed)
    if labels is None:
        LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).save_pretrained(folder)
    else:
        LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=labels)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int = len(PROMPTS)) -> Path:
    """Write prompts as JSONL with the column `prompt`."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:count]))
    return path


def write_config(folder: Path, replaced: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a configuration for the tiny model in `folder`.

    Args:
        folder: folder with the model and the prompts, to which the configuration is written.
        replaced: sections that replace the default ones.
        changes: sections that are merged into the default ones, one level deep.

    Returns:
        Path of the YAML file, named after the configuration.
    """
    import yaml

    config: dict[str, Any] = {
        "name": "tiny",
        "seed": 1,
        "iterations": 2,
        "policy": {"model": str(folder / "policy")},
        "prompts": {
            "source": {"type": "file", "path": str(folder / "prompts.jsonl")},
            "sample": 12,
            "held_out": 6,
            "max_tokens": 64,
        },
        "selection": {"type": "optune", "rho": 0.5},
        "generation": {
            "engine": {"type": "transformers", "dtype": "float32"},
            "samples": 2,
            "max_tokens": 12,
            "shard_size": 4,
        },
        "reward": {"type": "function", "function": "tests.rewards:vowels"},
        "training": {
            "loss": WDPO,
            "batch_size": 4,
            "micro_batch_tokens": 512,
            "learning_rate": 1e-4,
            "precision": "float32",
        },
        "held_out": {"samples": 1, "gold": {"type": "function", "function": "tests.rewards:brevity"}},
    }
    for section, value in changes.items():
        config[section] = config[section] | value if isinstance(value, dict) and section in config else value
    config |= replaced or {}
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _tokenizer(chat_template: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(PROMPTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
