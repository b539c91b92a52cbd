"""Pairs and merge: prompts in = pairs out + named drops, and nobody else's pair changes."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.errors import ConservationError
from optune_core.pairs import Candidate, Pair, best_against_worst
from optune_core.replay import (
    PAIR_COLUMNS,
    empty_replay,
    fresh_pairs,
    given_pairs,
    merge,
    pair_responses,
    trainable,
)
from optune_core.reports.statistics import paired_difference, replay_statistics
from optune_core.schemas import PROMPTS, RESPONSES, SCORES, write_table


def prompts(*ids: str) -> pa.Table:
    rows = [
        {
            "prompt_id": i,
            "prompt": f"prompt {i}",
            "messages": [{"role": "user", "content": i}],
            "prompt_token_ids": [1],
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def sampled(
    rewards: dict[str, list[float | None]], texts: dict[str, list[str]] | None = None
) -> tuple[pa.Table, pa.Table]:
    """Responses and scores: one a reward; None is a response that could not be scored."""
    responses, scores = [], []
    for i, values in rewards.items():
        for sample, reward in enumerate(values):
            text = texts[i][sample] if texts and i in texts else f"answer {i} {sample}"
            responses.append(
                prompts(i).to_pylist()[0]
                | {
                    "sample": sample,
                    "response": text,
                    "response_token_ids": [ord(c) for c in text],
                    "finish_reason": "stop",
                }
            )
            outcome = "ok" if reward is not None else "empty"
            scores.append({"prompt_id": i, "sample": sample, "reward": reward, "outcome": outcome})
    return pa.Table.from_pylist(responses, schema=RESPONSES), pa.Table.from_pylist(scores, schema=SCORES)


def advance(
    previous: pa.Table, rewards: dict[str, list[float | None]], iteration: int = 0, **kwargs: object
) -> pa.Table:
    responses, scores = sampled(rewards, **kwargs)
    pairs = pair_responses(responses, scores)
    reasons = {i: pair for i, pair in pairs.items() if isinstance(pair, str)}
    return merge(previous, list(rewards), fresh_pairs(responses, scores, pairs, iteration), reasons)


def test_pair_is_best_against_worst() -> None:
    candidates = [Candidate(i, (i,), reward, "ok") for i, reward in enumerate([0.5, 2.0, -1.0, 1.0])]
    assert best_against_worst(candidates) == Pair(chosen=1, rejected=2)


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "no_response"),
        ([Candidate(0, (1,), 1.0, "ok"), Candidate(1, (), None, "empty")], "one_left:empty"),
        ([Candidate(0, (), None, "empty"), Candidate(1, (2,), None, "non_finite")], "one_left:empty,non_finite"),
        ([Candidate(0, (1, 2), 1.0, "ok"), Candidate(1, (1, 2), 1.0, "ok")], "identical"),
        ([Candidate(0, (1,), 1.0, "ok"), Candidate(1, (2,), 1.0, "ok")], "tied"),
    ],
)
def test_no_pair_has_a_named_reason(candidates: list[Candidate], reason: str) -> None:
    assert best_against_worst(candidates) == reason


def test_iteration_0_gives_every_prompt_a_row() -> None:
    replay = advance(empty_replay(prompts("a", "b", "c")), {"a": [0.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 1.0]})
    assert replay["prompt_id"].to_pylist() == ["a", "b", "c"]
    assert replay["status"].to_pylist() == ["regenerated", "unpaired", "regenerated"]
    assert replay["reason"].to_pylist() == [None, "tied", None]
    assert replay["chosen"].to_pylist() == ["answer a 1", None, "answer c 0"]
    assert replay["chosen_reward"].to_pylist() == [1.0, None, 3.0]
    assert replay["rejected_reward"].to_pylist() == [0.0, None, 1.0]
    assert trainable(replay)["prompt_id"].to_pylist() == ["a", "c"]


def test_only_selected_prompts_change() -> None:
    first = advance(empty_replay(prompts("a", "b", "c")), {"a": [0.0, 1.0], "b": [2.0, 1.0], "c": [3.0, 1.0]})
    second = advance(first, {"a": [5.0, 4.0], "b": [7.0, None]}, iteration=1)
    assert second["status"].to_pylist() == ["regenerated", "kept", "reused"]
    assert second["reason"].to_pylist() == [None, "one_left:empty", None]
    assert second["generated_at"].to_pylist() == [1, 0, 0]
    assert second["chosen_reward"].to_pylist() == [5.0, 2.0, 3.0]
    for name in PAIR_COLUMNS:
        assert second[name].to_pylist()[1:] == first[name].to_pylist()[1:]


def test_a_prompt_left_without_a_pair_keeps_its_reason_until_it_is_regenerated() -> None:
    first = advance(empty_replay(prompts("a", "b")), {"a": [0.0, 1.0], "b": [1.0, 1.0]})
    second = advance(first, {"a": [0.0, 2.0]}, iteration=1)
    assert (second["status"].to_pylist()[1], second["reason"].to_pylist()[1]) == ("unpaired", "tied")
    third = advance(second, {"b": [0.0, 2.0]}, iteration=2)
    assert (third["status"].to_pylist()[1], third["reason"].to_pylist()[1]) == ("regenerated", None)


def test_a_fixed_preference_set_keeps_its_labels() -> None:
    responses, scores = sampled({"a": [0.0, 1.0], "b": [2.0, None]})
    assert given_pairs(scores) == {"a": Pair(0, 1), "b": "unscored:empty"}
    fresh = fresh_pairs(responses, scores, given_pairs(scores), 0)
    assert (fresh["chosen_reward"][0].as_py(), fresh["rejected_reward"][0].as_py()) == (0.0, 1.0)


def test_lost_invented_and_unknown_prompts_are_defects() -> None:
    start = empty_replay(prompts("a", "b"))
    responses, scores = sampled({"a": [0.0, 1.0]})
    fresh = fresh_pairs(responses, scores, pair_responses(responses, scores), 0)
    with pytest.raises(ConservationError, match="first 'b'"):
        merge(start, ["a", "b"], fresh, {})
    with pytest.raises(ConservationError, match="first 'b'"):
        merge(start, ["a"], fresh, {"b": "tied"})
    with pytest.raises(ConservationError, match="not in the replay set"):
        merge(empty_replay(prompts("b")), ["a"], fresh, {})
    with pytest.raises(ConservationError, match="stand twice"):
        merge(empty_replay(prompts("a", "a")), ["a"], fresh, {})
    with pytest.raises(ConservationError, match="do not match"):
        pair_responses(responses, scores.slice(1))


@given(
    rounds=st.lists(
        st.dictionaries(
            st.sampled_from("abcdefgh"),
            st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_conservation_over_any_history(rounds: list[dict[str, list[float | None]]]) -> None:
    replay = empty_replay(prompts(*"abcdefgh"))
    for iteration, rewards in enumerate(rounds):
        before = {row["prompt_id"]: row for row in replay.to_pylist()}
        replay = advance(replay, rewards, iteration)
        assert replay["prompt_id"].to_pylist() == list("abcdefgh")
        for row in replay.to_pylist():
            paired = row["chosen_token_ids"] is not None
            assert (row["status"] == "unpaired") == (not paired)
            assert (row["status"] == "regenerated") == (row["generated_at"] == iteration)
            assert (row["reason"] is None) == (row["status"] in ("regenerated", "reused"))
            if row["prompt_id"] not in rewards:
                assert {n: row[n] for n in PAIR_COLUMNS} == {n: before[row["prompt_id"]][n] for n in PAIR_COLUMNS}
            if paired:
                assert row["chosen_reward"] > row["rejected_reward"]


def test_equal_tables_are_equal_bytes(tmp_path) -> None:
    table = advance(empty_replay(prompts("a", "b")), {"a": [0.0, 1.0], "b": [2.0, 1.0]})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    write_table(table, table.schema, tmp_path / "whole")
    write_table(pieces.combine_chunks(), table.schema, tmp_path / "pieces")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_gain_share_of_the_bottom_half() -> None:
    first = advance(
        empty_replay(prompts("a", "b", "c", "d")),
        {"a": [0.0, -1.0], "b": [1.0, -1.0], "c": [2.0, -1.0], "d": [3.0, -1.0]},
    )
    second = advance(first, {"a": [3.0, 0.0], "d": [4.0, 0.0]}, iteration=1)
    statistics = replay_statistics(first, second, 1)
    assert statistics["gain/mean"] == pytest.approx((3.0 + 1.0) / 2)
    assert statistics["gain/bottom_half_share"] == pytest.approx(0.75)
    assert statistics["age/mean"] == pytest.approx(0.5)
    assert statistics["rm/chosen"] == pytest.approx((3 + 1 + 2 + 4) / 4)


def test_paired_difference_uses_only_prompts_on_both_sides() -> None:
    change = paired_difference({"a": 0.0, "b": 1.0, "x": 100.0}, {"a": 1.0, "b": 2.0, "y": -100.0})
    assert (change["before"], change["after"], change["prompts"]) == (0.5, 1.5, 2)
    assert change["low"] == change["high"] == pytest.approx(1.0)
    assert not math.isnan(change["difference"])
