"""The shape of a dense decoder, as far as it costs time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optune_core.errors import ModelError

_VOCABULARY = 32_000
_GROUPED_QUERY = 4
_ASPECT = 128


@dataclass(frozen=True)
class ModelShape:
    parameters: float
    layers: int
    hidden: int
    kv_width: int
    """Width of a layer's keys: key-value heads × head dimension."""
    vocabulary: int
    tied: bool
    """The head uses the embedding's weights."""

    @property
    def embedding(self) -> float:
        """Weights of the embedding, and so of the head."""
        return self.vocabulary * self.hidden

    @property
    def body(self) -> float:
        """Weights that every token is multiplied with: all but the embedding (a look-up) and the head."""
        return self.parameters - self.embedding * (1 if self.tied else 2)

    def kv_bytes(self, bytes_per_value: int) -> float:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * self.layers * self.kv_width * bytes_per_value

    def forward_flops(self, tokens: float, attended: float, logits: float) -> float:
        """FLOPs of a forward pass: 2 a weight and token in the body, the same in the head where there are logits, and
        4 a hidden unit and layer for each attended position (scores, and their sum of values).

        Args:
            tokens: tokens that run through the body.
            attended: positions attended to, summed over these tokens.
            logits: tokens whose logits are computed.
        """
        return 2 * self.body * tokens + 2 * self.embedding * logits + 4 * self.layers * self.hidden * attended

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> ModelShape:
        """From a transformers `config.json` of the Llama kind: grouped-query attention, a gated MLP of three matrices.

        Args:
            config: the file's content.
            source: what to call it in an error.

        Raises:
            ModelError: it is not of that kind.
        """
        wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        missing = [name for name in wanted if name not in config]
        experts = [name for name in config if "experts" in name]
        if missing or experts:
            what = f"has no {', '.join(missing)}" if missing else f"is a mixture of experts ({experts[0]})"
            raise ModelError(
                f"{source}: the model's config.json {what}; the cost model reads dense decoders of the Llama kind. "
                "Give the number of weights that a token uses with --parameters, such as --parameters 7.2e9"
            )
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        kv_width = head * (config.get("num_key_value_heads") or heads)
        tied = bool(config.get("tie_word_embeddings", False))
        attention = 2 * hidden * heads * head + 2 * hidden * kv_width
        layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
        embedding = config["vocab_size"] * hidden * (1 if tied else 2)
        return cls(layers * layer + embedding + hidden, layers, hidden, kv_width, config["vocab_size"], tied)

    @classmethod
    def from_parameters(cls, parameters: float) -> ModelShape:
        """A usual shape of that size: hidden = 128 · layers and 12 · layers · hidden² weights, so
        layers = (parameters / (12 · 128²))^⅓; four query heads a key-value head; 32,000 untied words.

        Raises:
            ModelError: too few weights for such a vocabulary.
        """
        layers = max(1, round((parameters / (12 * _ASPECT**2)) ** (1 / 3)))
        hidden = _ASPECT * layers
        shape = cls(parameters, layers, hidden, hidden // _GROUPED_QUERY, _VOCABULARY, tied=False)
        if shape.body <= 0:
            raise ModelError(
                f"--parameters {parameters:g} is too small: the words alone take {2 * shape.embedding:.2g} weights. "
                "Give the number of weights, such as 7.2e9, or a local model folder as policy.model"
            )
        return shape


_MISTRAL_7B = ModelShape(7_241_732_096, 32, 4096, 1024, 32_000, tied=False)
_KNOWN = {
    "alignment-handbook/zephyr-7b-sft-full": _MISTRAL_7B,
    "HuggingFaceH4/zephyr-7b-beta": _MISTRAL_7B,
    "weqweasdas/RM-Mistral-7B": _MISTRAL_7B,
    "hendrydong/Mistral-RM-for-RAFT-GSHF-v0": _MISTRAL_7B,
}


def known_shape(model: str) -> ModelShape | None:
    """The shape of a local model folder, or of a hub id that we know; None for any other.

    Raises:
        ModelError: the folder's model is of another kind.
    """
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        return ModelShape.from_config(json.loads(file.read_text()), model)
    return _KNOWN.get(model)
