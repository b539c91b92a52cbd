"""HyPO's online samples as rows beside the preference pairs: a chosen response, and an empty rejected one."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.data.schemas import REPLAY, RESPONSES, TOKENS, only

SAMPLED = only(RESPONSES, "prompt_id", "sample", "prompt_token_ids", "response_token_ids", "policy_logps")
"""What is read of the responses."""


def as_rows(samples: pa.Table, schema: pa.Schema, iteration: int) -> pa.Table:
    """One row a sample.

    An empty response costs no tokens and has the log-probability 0 under any policy, so whatever computes pairs
    computes these: the reference pass and its shards, packing, the engine's log-probabilities.

    Args:
        samples: schema SAMPLED, of π_t.
        schema: columns of REPLAY to answer in; there is no reward.
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
