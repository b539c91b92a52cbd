"""The scorer of sequence classifiers with one logit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from optune_core.data.model_folder import conversation_token_ids, load_tokenizer, most_tokens
from optune_core.errors import ModelError
from optune_core.rewards.reward import Conversation


class ClassifierScorer:
    """Scorer that batches conversations of similar length, so that little is computed for padding."""

    def __init__(self, model: Path, *, batch_size: int, dtype: str) -> None:
        self._tokenizer: Any = load_tokenizer(model, str(model))
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device).eval()
        self._batch_size = batch_size
        self._most_tokens = most_tokens(self._model)

    @torch.inference_mode()
    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        token_ids = [self._token_ids(conversation) for conversation in conversations]
        order = sorted(range(len(token_ids)), key=lambda index: (len(token_ids[index]), index))
        scores = [float("nan")] * len(token_ids)
        for first in range(0, len(order), self._batch_size):
            rows = order[first : first + self._batch_size]
            batch = self._tokenizer.pad(
                {"input_ids": [token_ids[row] for row in rows]}, padding_side="right", return_tensors="pt"
            ).to(self._device)
            logits = self._model(**batch).logits[:, 0].float().tolist()
            for row, score in zip(rows, logits, strict=True):
                scores[row] = score
            done(first + len(rows))
        return scores

    def _token_ids(self, conversation: Conversation) -> list[int]:
        ids = conversation_token_ids(self._tokenizer, conversation.messages, conversation.response)
        if len(ids) > self._most_tokens:
            raise ModelError(
                f"a prompt with its response has {len(ids)} tokens, but the reward model reads {self._most_tokens} "
                f"tokens at most ({conversation.prompt[:60]!r}…): lower prompts.max_tokens or generation.max_tokens, "
                "or take a reward model that reads more"
            )
        return ids
