"""Which pairs are computed together, and how they are laid out.

Micro-batches are composed once an iteration, by length, and kept: the reference pass and every epoch compute a pair
in the same company and shape. Where policy and reference agree they agree to the last bit, so the first loss of an
iteration is mean(R)·ln 2 exactly. What is shuffled is the order of the micro-batches. Where memory does not suffice
for a micro-batch it is computed in consecutive parts, which changes neither its composition nor its padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Lengths:
    """Tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int


def compose_micro_batches(lengths: Sequence[Lengths], size: int) -> list[list[int]]:
    """Row numbers in groups of `size`, like lengths together; only the last group may be smaller.

    Args:
        lengths: one a row, in the order of the data set.
        size: pairs a micro-batch.
    """
    order = sorted(
        range(len(lengths)),
        key=lambda row: (max(lengths[row].chosen, lengths[row].rejected), lengths[row].prompt, row),
        reverse=True,
    )
    return [order[first : first + size] for first in range(0, len(order), size)]


def in_parts(batch: dict[str, Tensor], pairs: int) -> list[dict[str, Tensor]]:
    """A batch of `PairCollator` as consecutive parts of that many pairs, the last one perhaps smaller."""
    total = len(batch["input_ids"]) // 2
    if total <= pairs:
        return [batch]

    def rows(value: Tensor, first: int) -> Tensor:
        last = min(first + pairs, total)
        if len(value) == total:
            return value[first:last]
        return torch.cat([value[first:last], value[total + first : total + last]])

    return [{name: rows(value, first) for name, value in batch.items()} for first in range(0, total, pairs)]


class MicroBatchSampler(Sampler[int]):
    """Yields rows so that consecutive `size` of them are a micro-batch, in an order that (seed, epoch) decides.

    A smaller last micro-batch stays last, so that it does not shift the others.
    """

    def __init__(self, micro_batches: list[list[int]], seed: int) -> None:
        self._micro_batches = micro_batches
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, on resumption too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(len(group) for group in self._micro_batches)

    def __iter__(self) -> Iterator[int]:
        full = [group for group in self._micro_batches if len(group) == len(self._micro_batches[0])]
        rest = self._micro_batches[len(full) :]
        random.Random(f"{self._seed}/{self._epoch}").shuffle(full)
        for group in full + rest:
            yield from group


class PairCollator:
    """Pairs as one batch of 2B sequences, chosen first: prompts padded on the left, responses on the right.

    So all responses start at one column, and logits are needed from there on only.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: list[dict[str, object]]) -> dict[str, Tensor]:
        """
        Args:
            rows: B rows with prompt_ids, chosen_ids, rejected_ids (lists of int) and any of the float columns below.

        Returns:
            input_ids and attention_mask, int64, shape (2B, P + L); response_mask, bool, shape (2B, L);
            and, float32 of shape (B,), ref_chosen_logps, ref_rejected_logps, chosen_rewards, rejected_rewards.
        """
        prompts = [torch.tensor(row["prompt_ids"]) for row in rows] * 2
        responses = [torch.tensor(row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
        width = max(len(prompt) for prompt in prompts)
        length = max(len(response) for response in responses)
        input_ids = torch.full((len(prompts), width + length), self._pad)
        attention_mask = torch.zeros_like(input_ids)
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            begin, end = width - len(prompt), width + len(response)
            input_ids[index, begin:width] = prompt
            input_ids[index, width:end] = response
            attention_mask[index, begin:end] = 1
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "response_mask": attention_mask[:, width:].bool(),
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps", "chosen_rewards", "rejected_rewards"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch
