"""Shape of a dense decoder, as far as it determines the time of a pass."""

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
    """Number of weights, layers and widths of a dense decoder."""

    parameters: float
    """Number of weights."""
    layers: int
    hidden: int
    """Width of the hidden states."""
    kv_width: int
    """Width of a layer's keys: key-value heads × head dimension."""
    vocabulary: int
    """Number of tokens in the vocabulary."""
    tied: bool
    """True: the head uses the embedding's weights."""

    @property
    def embedding(self) -> float:
        """Number of weights of the embedding, and so of the head."""
        return self.vocabulary * self.hidden

    @property
    def body(self) -> float:
        """Number of weights that every token is multiplied with: all except the embedding (a look-up) and the head."""
        return self.parameters - self.embedding * (1 if self.tied else 2)

    def kv_bytes(self, bytes_per_value: int) -> float:
        """Return the bytes of keys and values that one token takes in the cache."""
        return 2 * self.layers * self.kv_width * bytes_per_value

    def forward_flops(self, tokens: float, attended: float, logits: float) -> float:
        """Return the FLOPs of a forward pass.

        FLOPs = 2 · body · tokens + 2 · embedding · logits + 4 · hidden · layers · attended, where the last term counts
        the scores and the sum of values at each attended position.

        Args:
            tokens: number of tokens that run through the body.
            attended: number of positions attended to, summed over these tokens.
            logits: number of tokens whose logits are computed.
        """
        return 2 * self.body * tokens + 2 * self.embedding * logits + 4 * self.layers * self.hidden * attended

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> ModelShape:
        """Read the shape from a transformers `config.json` of the Llama kind: grouped-query attention and a gated MLP
        of three matrices.

        Args:
            config: content of the file.
            source: name of the model or file in error messages.

        Raises:
            ModelError: the model is of another kind.
        """
        required = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        missing = [name for name in required if name not in config]
        experts = [name for name in config if "experts" in name]
        if missing or experts:
            what = f"has no {', '.join(missing)}" if missing else f"is a mixture of experts ({experts[0]})"
            raise ModelError(
                f"{source}: the model's config.json {what}, but the cost model covers dense decoders of the Llama "
                "kind. Give the number of weights that a token uses with --parameters, such as --parameters 7.2e9"
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
        """Make a usual shape of this size.

        With hidden = 128 · layers and 12 · layers · hidden² weights, layers = (parameters / (12 · 128²))^⅓. There are
        four query heads per key-value head, and 32,000 untied tokens in the vocabulary.

        Raises:
            ModelError: there are too few weights for this vocabulary.
        """
        layers = max(1, round((parameters / (12 * _ASPECT**2)) ** (1 / 3)))
        hidden = _ASPECT * layers
        shape = cls(parameters, layers, hidden, hidden // _GROUPED_QUERY, _VOCABULARY, tied=False)
        if shape.body <= 0:
            raise ModelError(
                f"--parameters {parameters:g} is too small: embedding and head alone have {2 * shape.embedding:.2g} "
                "weights. Give the number of weights, such as 7.2e9, or a local model folder as policy.model"
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
    """Return the shape of a local model folder or of a known hub id, or None for any other model.

    Raises:
        ModelError: the folder's model is not a dense decoder of the Llama kind.
    """
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        return ModelShape.from_config(json.loads(file.read_text()), model)
    return _KNOWN.get(model)
