"""Columns of the tables that stages pass to each other, in one place, so that a name has one meaning everywhere."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from optune_core.data.row_groups import read_groups, write_groups

TOKENS = pa.list_(pa.int32())
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # content hash
        ("prompt", pa.string()),  # the user's text, for people and reward functions
        ("messages", MESSAGES),  # for reward models, which apply their own template
        ("prompt_token_ids", TOKENS),  # input of the policy: the truth, never tokenised again
    ]
)

FIXED_PAIRS = pa.schema([*PROMPTS, ("chosen", pa.string()), ("rejected", pa.string())])

RESPONSES = pa.schema(
    [
        *PROMPTS,
        ("sample", pa.int32()),
        ("response", pa.string()),
        ("response_token_ids", TOKENS),  # as sampled, end-of-turn token included
        ("finish_reason", pa.string()),  # stop | length
        ("policy_logps", pa.float64()),  # log π(y|x) by the engine, summed over the response; null unless configured
    ]
)

SCORES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("reward", pa.float64()),  # null where the outcome is not ok
        ("outcome", pa.string()),  # ok | empty | truncated | non_finite
    ]
)

REPLAY = pa.schema(
    [
        *PROMPTS,
        ("chosen", pa.string()),
        ("chosen_token_ids", TOKENS),
        ("chosen_reward", pa.float64()),
        ("rejected", pa.string()),
        ("rejected_token_ids", TOKENS),
        ("rejected_reward", pa.float64()),
        ("chosen_policy_logps", pa.float64()),  # policy_logps of the chosen response
        ("rejected_policy_logps", pa.float64()),
        ("generated_at", pa.int32()),  # iteration of the pair; null without a pair
        ("sampled_from", pa.int32()),  # iteration of the policy that sampled the pair
        ("status", pa.string()),  # regenerated | reused | kept | unpaired
        ("reason", pa.string()),  # why the row is kept or unpaired; null otherwise
        ("responses_scored", pa.int32()),  # number of this prompt's responses with a reward, in all iterations
        ("reward_mean", pa.float64()),  # mean reward of these responses; null if there are none
        ("reward_variance", pa.float64()),  # mean squared deviation from reward_mean; null if there are none
        ("regenerations", pa.int32()),  # number of iterations that regenerated the prompt while it had a pair
        ("gain_mean", pa.float64()),  # mean gain in chosen_reward by these, 0 where the pair was kept; null if none
    ]
)

REFERENCE = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("reference_chosen_logps", pa.float64()),  # summed over response tokens
        ("reference_rejected_logps", pa.float64()),
    ]
)

PREFERENCES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("messages", MESSAGES),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("held_out", pa.bool_()),
    ]
)

STUDY_PAIRS = pa.schema(
    [
        ("pair", pa.int32()),  # number in the study, from 0; null unless the outcome is `asked`
        ("policy", pa.string()),  # name of the policy; `win` counts for this side
        ("baseline", pa.string()),  # name of the baseline
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("policy_response", pa.string()),  # null where the response is missing
        ("baseline_response", pa.string()),
        ("outcome", pa.string()),  # asked | not_drawn | identical | empty | missing
    ]
)

ANSWERS = pa.schema([RESPONSES.field(name) for name in ("prompt_id", "prompt", "messages", "sample", "response")])
"""Columns of a response that an evaluation or a study compares."""

COMPARISONS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("policy_response", pa.string()),
        ("baseline_response", pa.string()),
        ("judge", pa.string()),  # name of the judge; marks a reward model that stands in for a judge
        ("first_judgement", pa.string()),  # win | tie | lose of the policy as answer 1; null if malformed
        ("second_judgement", pa.string()),  # win | tie | lose of the policy as answer 2; null if malformed
        ("outcome", pa.string()),  # win | tie | lose | malformed
        ("first_policy_score", pa.float64()),
        ("first_baseline_score", pa.float64()),
        ("second_policy_score", pa.float64()),
        ("second_baseline_score", pa.float64()),
        ("first_explanation", pa.string()),  # the judge's words; of a malformed reply the complete text
        ("second_explanation", pa.string()),
        ("reason", pa.string()),  # why the reply is malformed; null otherwise
        ("requests", pa.int64()),  # number of requests for both orders, repeated ones included
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)

ANNOTATIONS = pa.schema(
    [
        ("index", pa.int32()),  # row of the instruction in its source
        ("instruction", pa.string()),
        ("reference_output", pa.string()),
        ("policy_output", pa.string()),
        ("preference", pa.float64()),  # from 1 (the reference output is better) to 2 (the policy's); null if malformed
    ]
)


def only(schema: pa.Schema, *names: str) -> pa.Schema:
    """Return the schema of some columns, in the order of `names`."""
    return pa.schema([schema.field(name) for name in names])


def write_table(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write a table as Parquet (zstd) in exactly this schema. Equal tables give equal bytes."""
    write_groups([table], schema, path)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read all rows of the columns of this schema from a file written by `write_table`.

    Raises:
        DataError: the file is not a complete Parquet file, or lacks one of the columns.
    """
    return pa.concat_tables([schema.empty_table(), *read_groups([path], schema)])
