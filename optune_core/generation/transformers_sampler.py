"""The sampler of the engine `transformers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optune_core.generation.engine import Request, Response, SamplingParameters
from optune_core.generation.nucleus import keep_nucleus


class TransformersSampler:
    """Repeatable batched sampling: every request has a random generator of its own."""

    def __init__(self, config: SamplingParameters, model: Path, *, batch_size: int, dtype: str) -> None:
        self._config = config
        self._batch_size = batch_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model.to(self._device).eval()
        stop = self._model.generation_config.eos_token_id
        stop = stop if isinstance(stop, list) else [stop if stop is not None else self._tokenizer.eos_token_id]
        self._stop: frozenset[int] = frozenset(stop)

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        for _, shard in groupby(requests, key=lambda request: request.shard):
            by_length = sorted(shard, key=lambda request: (len(request.prompt_token_ids), request.index))
            for first in range(0, len(by_length), self._batch_size):
                yield from self._batch(by_length[first : first + self._batch_size])

    @torch.inference_mode()
    def _batch(self, requests: list[Request]) -> Iterator[Response]:
        generators = [torch.Generator(self._device).manual_seed(request.seed) for request in requests]
        longest = max(len(request.prompt_token_ids) for request in requests)
        padding = [longest - len(request.prompt_token_ids) for request in requests]
        tokens = torch.tensor(  # int64, (batch, longest), padded on the left
            [[0] * pad + request.prompt_token_ids for pad, request in zip(padding, requests, strict=True)],
            device=self._device,
        )
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=self._device)
        responses: list[list[int]] = [[] for _ in requests]
        logps = [0.0] * len(requests)
        open_rows = set(range(len(requests)))
        cache: Any = None
        for _ in range(self._config.max_tokens):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            output = self._model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float()  # (batch, vocabulary)
            probabilities = keep_nucleus(logits / self._config.temperature, self._config.top_p).softmax(dim=-1)
            tokens = torch.stack(  # int64, (batch, 1)
                [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
            )
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            token_logps = logits.log_softmax(dim=-1).gather(-1, tokens) if self._config.logps else None
            for row in sorted(open_rows):
                token = int(tokens[row])
                responses[row].append(token)
                if token_logps is not None:
                    logps[row] += float(token_logps[row])
                if token in self._stop:
                    open_rows.discard(row)
            if not open_rows:
                break
        for request, token_ids, logp in zip(requests, responses, logps, strict=True):
            yield Response(
                shard=request.shard,
                index=request.index,
                token_ids=token_ids,
                text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
                finish_reason="stop" if token_ids[-1] in self._stop else "length",
                logp=logp if self._config.logps else None,
            )
