"""Online samples of HyPO as rows of the training data: the sample is the chosen response, the rejected one is empty."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.schemas import REPLAY, RESPONSES, TOKENS, only

SAMPLED = only(RESPONSES, "prompt_id", "sample", "prompt_token_ids", "response_token_ids", "policy_logps")
"""Columns of RESPONSES that are read."""


def as_rows(samples: pa.Table, schema: pa.Schema, iteration: int) -> pa.Table:
    """Return one row a sample.

    An empty response has no tokens and the log-probability 0 under any policy. So code that computes pairs also
    computes these rows: the reference pass and its shards, packing, and the use of the engine's log-probabilities.

    Args:
        samples: responses of π_t, schema SAMPLED.
        schema: columns of REPLAY that the rows have; rewards are null.
        iteration: t.
    """
    rows = samples.num_rows
    columns = {name: pa.nulls(rows, schema.field(name).type) for name in schema.names}
    columns |= {
        "prompt_id": pc.binary_join_element_wise(samples["prompt_id"], pc.cast(samples["sample"], pa.string()), "/"),
        "prompt_token_ids": samples["prompt_token_ids"],
        "chosen_token_ids": samples["response_token_ids"],
        "rejected_token_ids": pa.array([[]] * rows, TOKENS),
        "chosen_policy_logps": samples["policy_logps"],
        "rejected_policy_logps": pa.repeat(0.0, rows),
    }
    columns |= {name: pa.repeat(pa.scalar(iteration, pa.int32()), rows) for name in ("generated_at", "sampled_from")}
    assert set(columns) == set(schema.names) <= set(REPLAY.names)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
