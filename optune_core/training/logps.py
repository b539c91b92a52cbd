"""log π(y|x) by one function for policy and reference, so that both take the same numerical path.

The function replaces the model's forward pass. So everything that wraps the model (DDP, FSDP, an adapter, autocast)
wraps the complete computation, the projection to the vocabulary included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from optune_core.training.attention import KERNELS
from optune_core.training.head import token_logps
from optune_core.training.layout import PackedRow, TokenPairs

PLAIN = "plain"
"""Name for computing without a kernel: one sequence at a time, in the model's own forward pass."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference from the model's own forward pass that roundings can explain."""

_log = logging.getLogger(__name__)


def choose_kernel(model: Any, precision: torch.dtype) -> str:
    """Return the first kernel of `attention.KERNELS` that computes this model correctly on its device, or `plain`.

    Not every architecture can be packed: some do not pass our arguments on to their attention, have layers other than
    attention, or change their logits afterwards. So each kernel is tried on two pairs in which all masking matters.

    Args:
        model: a causal language model of transformers with its weights, not wrapped. It is not changed.
        precision: dtype of autocast in the forward pass; float32 for none.
    """
    device, implementation = next(model.parameters()).device, model.config._attn_implementation
    row = _trial(model.config.get_text_config().vocab_size).to(device)
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        expected = _plain(model.forward, row)
        chosen = next((name for name in KERNELS if _is_right(model, name, row, expected, _TOLERANCE[precision])), PLAIN)
    model.set_attn_implementation(implementation)
    model.train(training)
    if chosen == PLAIN:
        _log.warning(
            "%s cannot be packed, since no attention kernel reproduces its log-probabilities: "
            "it is trained one sequence at a time, which is slow",
            type(model).__name__,
        )
    return chosen


def compute_inside(model: Any, kernel: str, *, cast_weights: bool = True) -> None:
    """Replace the model's forward pass, so that `model(packed=row)` returns the log-probabilities for `row_logps`.

    Args:
        model: a causal language model of transformers, not wrapped. It is changed.
        kernel: name in `attention.KERNELS`, or `plain`.
        cast_weights: under autocast, cast all weights to its dtype once per row and compute in it throughout, instead
            of casting in every operation. Has to be False with FSDP, which does this itself, and with gradient
            checkpointing.
    """
    if kernel == PLAIN:
        own = model.forward
        model.forward = MethodType(lambda self, packed, **ignored: _plain(own, packed), model)
    else:
        model.set_attn_implementation(f"optune_{kernel}")
        model.forward = MethodType(partial(_packed, cast_weights=cast_weights), model)


def row_logps(model: Any, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Compute log π(y_w|x) and log π(y_l|x), summed over response tokens.

    Args:
        model: model changed by `compute_inside`, wrapped or not.
        row: P pairs, on the model's device.

    Returns:
        Two float32 tensors, (P,): chosen and rejected. An empty response has 0.
    """
    chosen, rejected = model(packed=row).chunk(2)
    return chosen, rejected


def _packed(model: Any, packed: PackedRow, *, cast_weights: bool = True, **ignored: Any) -> Tensor:
    """Compute the log-probabilities of a row with a kernel: float32, (2P,), chosen before rejected."""
    body, device = model.base_model, packed.input_ids.device.type
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "packed": packed, "use_cache": False}
    if cast_weights and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        weights = {name: weight.to(kind) for name, weight in body.named_parameters()}
        with torch.autocast(device, enabled=False):
            hidden = functional_call(body, weights, kwargs=inputs).last_hidden_state[0]
    else:
        hidden = body(**inputs).last_hidden_state[0]
    of_tokens = token_logps(model.get_output_embeddings(), hidden[packed.predictors], packed.targets)
    # Summed one sequence at a time, so that the order of the summands is the same on all devices.
    return torch.stack([part.sum() for part in torch.split(of_tokens, list(packed.lengths))])


def _plain(forward: Callable[..., Any], packed: PackedRow) -> Tensor:
    """Compute the log-probabilities of a row with the model's own forward pass, one sequence at a time."""
    sequences: list[list[Tensor]] = [[], []]
    for span in packed.spans:
        prompt = packed.input_ids[:, span.start : span.start + span.prompt]
        for side, (first, length) in enumerate(
            ((span.start + span.prompt, span.chosen), (span.branch, span.rejected)),
        ):
            if not length:
                sequences[side].append(torch.zeros((), device=packed.input_ids.device))
                continue
            response = packed.input_ids[:, first : first + length]
            output = forward(input_ids=torch.cat([prompt, response], dim=1), logits_to_keep=length + 1, use_cache=False)
            sequences[side].append(-F.cross_entropy(output.logits[0, :-1].float(), response[0], reduction="sum"))
    return torch.stack(sequences[0] + sequences[1])


def _is_right(model: Any, kernel: str, row: PackedRow, expected: Tensor, tolerance: float) -> bool:
    try:
        model.set_attn_implementation(f"optune_{kernel}")
        found = _packed(model, row)
    except Exception as error:  # kernels and architectures raise errors of any type
        _log.info("attention kernel %r cannot compute %s: %s", kernel, type(model).__name__, error)
        return False
    return torch.allclose(found, expected, rtol=tolerance)


def _trial(vocabulary: int) -> PackedRow:
    """Make a row of two pairs of different lengths, with tokens from the complete vocabulary."""
    prompts, chosen, rejected = (
        [[(7919 * i + 104729 * (length + 1)) % vocabulary for i in range(length)] for length in lengths]
        for lengths in ((24, 17), (19, 30), (25, 12))
    )
    columns = {"prompt_token_ids": prompts, "chosen_token_ids": chosen, "rejected_token_ids": rejected}
    table = pa.table({name: pa.array(ids, pa.list_(pa.int32())) for name, ids in columns.items()})
    return TokenPairs(table).row([0, 1])
