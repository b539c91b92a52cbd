"""Preference pairs as token ids, and several pairs as one row without padding: each prompt once, then both responses.

A pair is laid out as prompt, chosen, rejected. Chosen and rejected both continue the prompt: the positions of both
start after it, and a token of one never sees the other (see `attention`). So a pair costs prompt + chosen + rejected
tokens, where two padded sequences would each cost the longest prompt plus the longest response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


@dataclass(frozen=True)
class PairSpan:
    """Place of a pair in a row: the position of its first token, and three lengths in tokens."""

    start: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def branch(self) -> int:
        """Position of the rejected response's first token."""
        return self.start + self.prompt + self.chosen

    @property
    def end(self) -> int:
        """Position after the pair's last token."""
        return self.branch + self.rejected


@dataclass(frozen=True)
class Sequences:
    """The S causal sequences of a row with P pairs: for each pair prompt with chosen, then prompt with rejected.

    An empty rejected response gives no sequence, so P ≤ S ≤ 2P.
    """

    keys: Tensor
    """int64: positions in the row that the sequences attend to, one sequence after the other."""
    query_offsets: Tensor
    """int32, (S + 1,): position in the row of each sequence's first own token."""
    key_offsets: Tensor
    """int32, (S + 1,): index in `keys` of each sequence's first entry."""
    longest_query: int
    """Largest number of own tokens of a sequence."""
    longest_key: int
    """Largest number of tokens that a sequence attends to."""


@dataclass(frozen=True)
class PackedRow:
    """P pairs in one row of T tokens, of which R are response tokens."""

    input_ids: Tensor
    """int64, (1, T): token ids."""
    position_ids: Tensor
    """int64, (1, T): position of each token in its own sequence."""
    predictors: Tensor
    """int64, (R,): position in the row of the hidden state that predicts each response token; chosen ones first."""
    targets: Tensor
    """int64, (R,): the response tokens, in the same order."""
    lengths: tuple[int, ...]
    """Number of response tokens of each of the 2P responses, chosen ones first."""
    spans: tuple[PairSpan, ...]
    """Place of each pair in the row."""

    @cached_property
    def sequences(self) -> Sequences:
        """Causal sequences of the row, on the row's device."""
        queries, keys, seen = [], [], []
        for span in self.spans:
            queries.append(span.prompt + span.chosen)
            keys.append(span.prompt + span.chosen)
            seen.append(np.arange(span.start, span.branch))
            if span.rejected:
                queries.append(span.rejected)
                keys.append(span.prompt + span.rejected)
                seen += [np.arange(span.start, span.start + span.prompt), np.arange(span.branch, span.end)]
        device = self.input_ids.device
        return Sequences(
            keys=_tensor(seen).to(device),
            query_offsets=torch.tensor([0, *queries]).cumsum(0, dtype=torch.int32).to(device),
            key_offsets=torch.tensor([0, *keys]).cumsum(0, dtype=torch.int32).to(device),
            longest_query=max(queries),
            longest_key=max(keys),
        )

    def to(self, device: torch.device) -> PackedRow:
        """Return the row with its tensors on a device."""
        moved = {
            name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "predictors", "targets")
        }
        return replace(self, **moved)


class TokenPairs:
    """Token ids of preference pairs, in Arrow's memory and without a Python object per token."""

    def __init__(self, table: pa.Table, *, rejected: bool = True) -> None:
        """
        Args:
            table: columns prompt_token_ids, chosen_token_ids, rejected_token_ids: lists of int32, without nulls.
            rejected: False: treat each rejected response as empty.
        """
        self._columns = [_ragged(table[f"{side}_token_ids"]) for side in ("prompt", "chosen", "rejected")]
        if not rejected:
            self._columns[2] = np.zeros(0, np.int32), np.zeros(len(self) + 1, np.int64)

    def __len__(self) -> int:
        return len(self._columns[0][1]) - 1

    def tokens(self, *, prompt_once: bool) -> np.ndarray[Any, Any]:
        """Count the tokens that each pair costs.

        Args:
            prompt_once: True: the prompt counts once for both responses; False: once for each.

        Returns:
            int64, (pairs,).
        """
        prompt, chosen, rejected = (np.diff(offsets).astype(np.int64) for _, offsets in self._columns)
        return (prompt if prompt_once else 2 * prompt) + chosen + rejected

    @cached_property
    def chosen_tokens(self) -> np.ndarray[Any, Any]:
        """Number of tokens of each chosen response: int64, (pairs,)."""
        return np.diff(self._columns[1][1]).astype(np.int64)

    def __getitem__(self, pair: int) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the token ids of prompt, chosen and rejected: three int32 arrays."""
        return tuple(values[offsets[pair] : offsets[pair + 1]] for values, offsets in self._columns)

    def row(self, numbers: Sequence[int]) -> PackedRow:
        """Pack these pairs into a row, one after the other."""
        ids, positions, spans, start = [], [], [], 0
        predictors: list[list[np.ndarray[Any, Any]]] = [[], []]
        targets: list[list[np.ndarray[Any, Any]]] = [[], []]
        for number in numbers:
            prompt, chosen, rejected = self[number]
            span = PairSpan(start, len(prompt), len(chosen), len(rejected))
            spans.append(span)
            ids += [prompt, chosen, rejected]
            after = span.prompt + np.arange(max(span.chosen, span.rejected))
            positions += [np.arange(span.prompt), after[: span.chosen], after[: span.rejected]]
            for side, (first, response) in enumerate(((start + span.prompt, chosen), (span.branch, rejected))):
                if len(response):
                    # The prompt's last token predicts the first token of both responses.
                    before = np.arange(first - 1, first - 1 + len(response))
                    before[0] = start + span.prompt - 1
                    predictors[side].append(before)
                    targets[side].append(response)
            start = span.end
        return PackedRow(
            input_ids=_tensor(ids)[None],
            position_ids=_tensor(positions)[None],
            predictors=_tensor(predictors[0] + predictors[1]),
            targets=_tensor(targets[0] + targets[1]),
            lengths=(*[span.chosen for span in spans], *[span.rejected for span in spans]),
            spans=tuple(spans),
        )


def _ragged(column: pa.ChunkedArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the values and offsets of a column of lists."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more values than 32-bit offsets can count
        array = pa.concat_arrays([chunk.cast(pa.large_list(pa.int32())) for chunk in array.chunks])
    return array.values.to_numpy(), array.offsets.to_numpy()


def _tensor(parts: list[np.ndarray[Any, Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts, dtype=np.int64) if parts else np.zeros(0, np.int64))
