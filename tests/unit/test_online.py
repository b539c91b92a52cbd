"""Online samples of HyPO as rows beside the pairs."""

from __future__ import annotations

import pyarrow as pa

from optune_core.data.schemas import REPLAY, only
from optune_core.training.online import SAMPLED, as_rows

COLUMNS = only(
    REPLAY,
    "prompt_id",
    "prompt_token_ids",
    "chosen_token_ids",
    "rejected_token_ids",
    "chosen_reward",
    "rejected_reward",
    "chosen_policy_logps",
    "rejected_policy_logps",
    "generated_at",
    "sampled_from",
)


def test_a_sample_is_a_chosen_response_with_an_empty_rejected_one() -> None:
    samples = [
        {"prompt_id": "a", "sample": 0, "prompt_token_ids": [1], "response_token_ids": [2, 3], "policy_logps": -4.0},
        {"prompt_id": "a", "sample": 1, "prompt_token_ids": [1], "response_token_ids": [5], "policy_logps": None},
    ]
    rows = as_rows(pa.Table.from_pylist(samples, schema=SAMPLED), COLUMNS, iteration=2)
    assert rows.schema == COLUMNS
    shared = {"chosen_reward": None, "rejected_reward": None, "rejected_token_ids": [], "prompt_token_ids": [1]}
    shared |= {"rejected_policy_logps": 0.0, "generated_at": 2, "sampled_from": 2}
    assert rows.to_pylist() == [
        {name: row[name] for name in COLUMNS.names}
        for row in (
            shared | {"prompt_id": "a/0", "chosen_token_ids": [2, 3], "chosen_policy_logps": -4.0},
            shared | {"prompt_id": "a/1", "chosen_token_ids": [5], "chosen_policy_logps": None},
        )
    ]


def test_no_samples_give_no_rows() -> None:
    assert as_rows(SAMPLED.empty_table(), COLUMNS, iteration=0).equals(COLUMNS.empty_table())
