"""The reference pass in shards: each is committed when it is done, so that a kill repeats one of them at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from optune_core.errors import ConservationError
from optune_core.schemas import REFERENCE

SHARD_PAIRS = 512


def reference_shards(rows: int, micro_batch_size: int) -> int:
    """How many shards a data set has."""
    return -(-rows // _rows_a_shard(micro_batch_size))


def shard_of(micro_batches: list[list[int]], micro_batch_size: int, shard: int) -> list[list[int]]:
    """The micro-batches of a shard: whole ones, in their order, of about SHARD_PAIRS pairs together."""
    count = _rows_a_shard(micro_batch_size) // micro_batch_size
    return micro_batches[shard * count : (shard + 1) * count]


def shard_table(prompt_ids: Sequence[str], logps: dict[int, tuple[float, float]]) -> pa.Table:
    """A shard as schema REFERENCE, in the order in which it was computed.

    Args:
        prompt_ids: of all rows.
        logps: (chosen, rejected) by row number.
    """
    return pa.table(
        [
            [prompt_ids[row] for row in logps],
            [chosen for chosen, _ in logps.values()],
            [rejected for _, rejected in logps.values()],
        ],
        schema=REFERENCE,
    )


def assemble(shards: Sequence[pa.Table], prompt_ids: Sequence[str]) -> list[tuple[float, float]]:
    """(chosen, rejected) log π_ref(y|x) in the order of `prompt_ids`.

    Raises:
        ConservationError: a prompt is in no shard, in two of them, or not in the data set.
    """
    whole = pa.concat_tables(shards)
    ids = whole["prompt_id"].to_pylist()
    found, expected = Counter(ids), Counter(prompt_ids)
    if wrong := sorted((found - expected) + (expected - found)):
        raise ConservationError(
            f"the reference pass has {len(ids)} pairs and the data set {len(prompt_ids)}, and they do not match one to "
            f"one: prompt {wrong[0]!r} is {found[wrong[0]]} times in the first and {expected[wrong[0]]} in the second"
        )
    columns = [whole[name].to_pylist() for name in ("reference_chosen_logps", "reference_rejected_logps")]
    of = dict(zip(ids, zip(*columns, strict=True), strict=True))
    return [of[prompt_id] for prompt_id in prompt_ids]


def _rows_a_shard(micro_batch_size: int) -> int:
    return max(1, SHARD_PAIRS // micro_batch_size) * micro_batch_size
