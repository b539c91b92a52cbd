"""Pairs and merge: prompts in = pairs out + named drops, and pairs of other prompts are unchanged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.data import row_groups
from optune_core.data.row_groups import in_groups
from optune_core.data.schemas import PROMPTS, REPLAY, SCORES
from optune_core.errors import ConservationError
from optune_core.history import HISTORY
from optune_core.pairs import as_given, best_against_worst
from optune_core.replay import (
    PAIR_COLUMNS,
    PAIRED_RESPONSES,
    accounted,
    empty_replay,
    fresh_pairs,
    merge,
    require_each_once,
    scored,
    trainable,
)
from optune_core.statistics import correlation, paired_difference, replay_statistics, without_texts
from tests.unit import naive

Row = dict[str, Any]


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


def candidate(prompt_id: str, sample: int, reward: float | None, text: str, outcome: str = "ok") -> Row:
    """One scored response."""
    return {
        "prompt_id": prompt_id,
        "sample": sample,
        "response": text,
        "response_token_ids": [ord(c) for c in text],
        "policy_logps": -float(len(text)),
        "reward": reward,
        "outcome": outcome,
    }


def sampled(rewards: dict[str, list[float | None]]) -> list[Row]:
    """One response a reward, all different; None is a response that could not be scored."""
    return [
        candidate(i, sample, reward, f"answer {i} {sample}", "empty" if reward is None else "ok")
        for i, values in rewards.items()
        for sample, reward in enumerate(values)
    ]


def tables(candidates: list[Row]) -> tuple[pa.Table, pa.Table]:
    """Responses and scores."""
    return tuple(
        pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in candidates], schema=schema)
        for schema in (PAIRED_RESPONSES, SCORES)
    )


def fresh_of(candidates: list[Row], iteration: int = 0, rule: Any = best_against_worst) -> Iterator[pa.Table]:
    responses, scores = tables(candidates)
    return fresh_pairs(scored([responses], [scores]), rule, iteration, sampled_from=iteration - 1)


def advance(previous: pa.Table, candidates: list[Row], iteration: int = 0, rule: Any = best_against_worst) -> pa.Table:
    """Merge candidates into D_{t-1}, their prompts selected in the order of the candidates. Returns D_t."""
    selected = pa.table({"prompt_id": list(dict.fromkeys(row["prompt_id"] for row in candidates))}, FRESH_IDS)
    return joined(merge(in_groups([previous]), accounted([selected], fresh_of(candidates, iteration, rule))))


FRESH_IDS = pa.schema([("prompt_id", pa.string())])


def joined(stream: Iterator[pa.Table]) -> pa.Table:
    return pa.concat_tables([REPLAY.empty_table(), *stream])


def without_history(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in HISTORY} for row in rows]


def history_of(replay: pa.Table) -> list[Row]:
    return replay.select(HISTORY).to_pylist()


def pair_of(*candidates: Row) -> Row:
    (fresh,) = fresh_of(list(candidates))
    return fresh.to_pylist()[0]


def test_pair_is_best_against_worst() -> None:
    pair = pair_of(*[candidate("a", i, reward, f"text {i}") for i, reward in enumerate([0.5, 2.0, -1.0, 1.0])])
    assert (pair["chosen"], pair["chosen_reward"], pair["chosen_token_ids"][-1]) == ("text 1", 2.0, ord("1"))
    assert (pair["rejected"], pair["rejected_reward"], pair["rejected_policy_logps"]) == ("text 2", -1.0, -6.0)
    assert (pair["generated_at"], pair["sampled_from"], pair["reason"]) == (0, -1, None)


def test_the_lower_sample_number_settles_equal_rewards() -> None:
    pair = pair_of(*[candidate("a", i, reward, f"text {i}") for i, reward in enumerate([0.0, 1.0, 1.0, 0.0])])
    assert (pair["chosen"], pair["rejected"]) == ("text 1", "text 0")


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([candidate("a", 0, 1.0, "x"), candidate("a", 1, None, "", "empty")], "one_left:empty"),
        (
            [candidate("a", 0, None, "", "non_finite"), candidate("a", 1, None, "y", "empty")],
            "one_left:empty,non_finite",
        ),
        ([candidate("a", 0, 1.0, "xy"), candidate("a", 1, 2.0, "xy")], "identical"),
        ([candidate("a", 0, 1.0, "x"), candidate("a", 1, 1.0, "y")], "tied"),
        ([candidate("a", 3, 1.0, "x")], "one_left:"),
    ],
)
def test_a_prompt_without_a_pair_has_a_reason(candidates: list[Row], reason: str) -> None:
    pair = pair_of(*candidates)
    assert pair.pop("reason") == reason
    assert pair.pop("prompt_id") == "a"
    assert {pair[name] for name in PAIR_COLUMNS} == {None}


def test_iteration_0_gives_every_prompt_a_row() -> None:
    rewards = {"a": [0.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 1.0]}
    replay = advance(empty_replay(prompts("a", "b", "c")), sampled(rewards))
    assert replay["prompt_id"].to_pylist() == ["a", "b", "c"]
    assert replay["status"].to_pylist() == ["regenerated", "unpaired", "regenerated"]
    assert replay["reason"].to_pylist() == [None, "tied", None]
    assert replay["chosen"].to_pylist() == ["answer a 1", None, "answer c 0"]
    assert replay["chosen_reward"].to_pylist() == [1.0, None, 3.0]
    assert replay["rejected_reward"].to_pylist() == [0.0, None, 1.0]
    assert trainable(replay)["prompt_id"].to_pylist() == ["a", "c"]


def test_only_selected_prompts_change() -> None:
    rewards = {"a": [0.0, 1.0], "b": [2.0, 1.0], "c": [3.0, 1.0]}
    first = advance(empty_replay(prompts("a", "b", "c")), sampled(rewards))
    second = advance(first, sampled({"a": [5.0, 4.0], "b": [7.0, None]}), iteration=1)
    assert second["status"].to_pylist() == ["regenerated", "kept", "reused"]
    assert second["reason"].to_pylist() == [None, "one_left:empty", None]
    assert second["generated_at"].to_pylist() == [1, 0, 0]
    assert second["chosen_reward"].to_pylist() == [5.0, 2.0, 3.0]
    for name in PAIR_COLUMNS:
        assert second[name].to_pylist()[1:] == first[name].to_pylist()[1:]
    third = advance(second, sampled({"c": [0.0, 1.0]}), iteration=2)
    assert third["status"].to_pylist() == ["reused", "reused", "regenerated"]
    assert third["reason"].to_pylist() == [None, None, None]


def test_history_equals_values_by_hand() -> None:
    replay = advance(empty_replay(prompts("a", "b", "c")), sampled({"a": [1.0, 3.0], "b": [2.0, None]}))
    nothing = {"responses_scored": 0, "reward_mean": None, "reward_variance": None}
    never = {"regenerations": 0, "gain_mean": None}
    assert history_of(replay) == [
        {"responses_scored": 2, "reward_mean": 2.0, "reward_variance": 1.0} | never,  # nobody gains on nothing
        {"responses_scored": 1, "reward_mean": 2.0, "reward_variance": 0.0} | never,
        nothing | never,
    ]
    replay = advance(replay, sampled({"a": [8.0, 4.0], "b": [4.0, 6.0]}), iteration=1)
    assert history_of(replay) == [
        {"responses_scored": 4, "reward_mean": 4.0, "reward_variance": 6.5, "regenerations": 1, "gain_mean": 5.0},
        {"responses_scored": 3, "reward_mean": 4.0, "reward_variance": pytest.approx(8 / 3)} | never,
        nothing | never,
    ]
    replay = advance(replay, sampled({"a": [4.0, 4.0], "b": [3.0, 1.0]}), iteration=2)  # a gains nothing, b loses
    assert [(row["regenerations"], row["gain_mean"]) for row in history_of(replay)] == [(2, 2.5), (1, -3.0), (0, None)]


def test_a_prompt_left_without_a_pair_keeps_its_reason_until_it_is_regenerated() -> None:
    first = advance(empty_replay(prompts("a", "b")), sampled({"a": [0.0, 1.0], "b": [1.0, 1.0]}))
    second = advance(first, sampled({"a": [0.0, 2.0]}), iteration=1)
    assert (second["status"].to_pylist()[1], second["reason"].to_pylist()[1]) == ("unpaired", "tied")
    third = advance(second, sampled({"b": [0.0, 2.0]}), iteration=2)
    assert (third["status"].to_pylist()[1], third["reason"].to_pylist()[1]) == ("regenerated", None)


def test_a_fixed_preference_set_keeps_its_labels() -> None:
    replay = advance(empty_replay(prompts("a", "b")), sampled({"a": [0.0, 1.0], "b": [2.0, None]}), rule=as_given)
    assert replay["chosen"].to_pylist() == ["answer a 0", None]
    assert (replay["chosen_reward"][0].as_py(), replay["rejected_reward"][0].as_py()) == (0.0, 1.0)
    assert replay["reason"].to_pylist() == [None, "unscored:empty"]
    with pytest.raises(
        ConservationError, match="exactly the samples 0 and 1 of each prompt, but there are 3 responses"
    ):
        advance(empty_replay(prompts("a")), sampled({"a": [0.0, 1.0, 2.0]}), rule=as_given)


@pytest.mark.parametrize(
    ("selected", "answered", "first"), [("ab", "a", "b"), ("a", "ab", "b"), ("", "a", "a"), ("ab", "b", "a")]
)
def test_lost_and_invented_prompts_are_defects(selected: str, answered: str, first: str) -> None:
    asked = pa.table({"prompt_id": list(selected)}, FRESH_IDS)
    fresh = fresh_of(sampled({i: [0.0, 1.0] for i in answered}))
    with pytest.raises(ConservationError, match=f"do not add up to the selected prompts: .* at prompt '{first}'"):
        list(accounted([asked], fresh))


@pytest.mark.parametrize(
    ("stored", "fresh", "message"),
    [
        ("b", "a", "1 fresh prompts are not in the replay set, .* the first of them 'a'"),
        ("abc", "acb", "'b' is not in the order"),
        ("ab", "aa", "'a' is not in the order"),
        ("", "ab", "2 fresh prompts are not in the replay set, .* the first of them 'a'"),
    ],
)
def test_unknown_and_misplaced_prompts_are_defects(stored: str, fresh: str, message: str) -> None:
    tables = [table for i in fresh for table in fresh_of(sampled({i: [0.0, 1.0]}))]
    with pytest.raises(ConservationError, match=message):
        joined(merge([empty_replay(prompts(*stored))] if stored else [], tables))


def test_a_duplicate_prompt_is_a_defect() -> None:
    require_each_once(pa.chunked_array([["a", "b"], ["c"]]))
    with pytest.raises(ConservationError, match="1 prompts are in the replay set twice, the first of them 'a'"):
        require_each_once(pa.chunked_array([["a", "b"], ["a"]]))


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("row", [0, 1, 3])
def test_unmatched_responses_and_scores_are_defects(lost: int, row: int) -> None:
    both = list(tables(sampled({"a": [0.0, 1.0], "b": [0.0, 1.0]})))
    both[lost] = pa.concat_tables([both[lost].slice(0, row), both[lost].slice(row + 1)])
    with pytest.raises(ConservationError, match="do not match one to one"):
        list(scored([both[0]], [both[1]]))


@pytest.mark.parametrize("samples", [[0, 0], [1, 0]])
def test_a_duplicate_or_misplaced_response_is_a_defect(samples: list[int]) -> None:
    with pytest.raises(ConservationError, match=r"response 0 of prompt 'a'"):
        pair_of(*[candidate("a", sample, float(row), f"text {row}") for row, sample in enumerate(samples)])


PROMPT_IDS = "abcdefgh"
REWARD = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
RESPONSE = st.one_of(
    st.tuples(REWARD, st.sampled_from(["x", "xy", "xz", "yz", ""]), st.just("ok")),
    st.tuples(st.none(), st.sampled_from(["x", ""]), st.sampled_from(["empty", "truncated", "non_finite"])),
)
ROUND = st.dictionaries(st.sampled_from(PROMPT_IDS), st.lists(RESPONSE, min_size=1, max_size=5))
GIVEN_ROUND = st.dictionaries(st.sampled_from(PROMPT_IDS), st.lists(RESPONSE, min_size=2, max_size=2))


def candidates_of(answers: dict[str, list[tuple[float | None, str, str]]]) -> list[Row]:
    return [
        candidate(i, sample, reward, text, outcome)
        for i in sorted(answers)
        for sample, (reward, text, outcome) in enumerate(answers[i])
    ]


@settings(max_examples=300)
@given(rounds=st.lists(ROUND, min_size=1, max_size=4), group=st.integers(1, 12))
def test_columnar_merge_equals_one_row_at_a_time(rounds: list[Any], group: int) -> None:
    replay, all_candidates = empty_replay(prompts(*PROMPT_IDS)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "ROW_GROUP", group)  # so that groups cut prompts anywhere
        for iteration, answers in enumerate(rounds):
            before, candidates = replay, candidates_of(answers)
            all_candidates.append(candidates)
            replay = advance(before, candidates, iteration)
            expected = naive.merge(
                before.to_pylist(), candidates, naive.best_against_worst, iteration, sampled_from=iteration - 1
            )
            assert without_history(replay.to_pylist()) == without_history(expected)
            lived = [naive.history(i, all_candidates, naive.best_against_worst) for i in PROMPT_IDS]
            assert history_of(replay) == [pytest.approx(row, abs=1e-12) for row in lived]
            found = replay_statistics(before["chosen_reward"], without_texts(replay), iteration)
            assert found == pytest.approx(naive.statistics(before.to_pylist(), expected, iteration), abs=1e-12)


@given(answers=GIVEN_ROUND, group=st.integers(1, 12))
def test_columnar_merge_of_given_pairs_equals_one_row_at_a_time(answers: Any, group: int) -> None:
    start, candidates = empty_replay(prompts(*PROMPT_IDS)), candidates_of(answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "ROW_GROUP", group)
        replay = advance(start, candidates, rule=as_given)
    expected = naive.merge(start.to_pylist(), candidates, naive.as_given, 0, -1)
    assert without_history(replay.to_pylist()) == without_history(expected)
    assert history_of(replay) == [
        pytest.approx(naive.history(i, [candidates], naive.as_given), abs=1e-12) for i in PROMPT_IDS
    ]


@given(rounds=st.lists(ROUND, min_size=1, max_size=4))
def test_prompts_are_conserved_over_any_history(rounds: list[Any]) -> None:
    replay = empty_replay(prompts(*PROMPT_IDS))
    for iteration, answers in enumerate(rounds):
        before = {row["prompt_id"]: row for row in replay.to_pylist()}
        replay = advance(replay, candidates_of(answers), iteration)
        assert replay["prompt_id"].to_pylist() == list(PROMPT_IDS)
        for row in replay.to_pylist():
            paired = row["chosen_token_ids"] is not None
            assert (row["status"] == "unpaired") == (not paired)
            assert (row["status"] == "regenerated") == (row["generated_at"] == iteration)
            assert (row["reason"] is None) == (row["status"] in ("regenerated", "reused"))
            if row["prompt_id"] not in answers:
                assert {n: row[n] for n in PAIR_COLUMNS} == {n: before[row["prompt_id"]][n] for n in PAIR_COLUMNS}
            if paired:
                assert row["chosen_reward"] > row["rejected_reward"]


def test_statistics_equal_values_by_hand() -> None:
    rewards = {"a": [0.0, -1.0], "b": [1.0, -1.0], "c": [2.0, -1.0], "d": [3.0, -1.0]}
    first = advance(empty_replay(prompts("a", "b", "c", "d")), sampled(rewards))
    second = advance(first, sampled({"a": [3.0, 0.0], "d": [4.0, 0.0]}), iteration=1)
    statistics = replay_statistics(first["chosen_reward"], without_texts(second), 1)
    assert statistics["gain/mean"] == pytest.approx((3.0 + 1.0) / 2)
    assert statistics["gain/bottom_half_share"] == pytest.approx(0.75)
    assert statistics["age/mean"] == pytest.approx(0.5)
    assert statistics["staleness/mean"] == pytest.approx(1.0)
    assert statistics["rm/chosen"] == pytest.approx((3 + 1 + 2 + 4) / 4)


def test_a_replay_set_without_pairs_has_no_statistics() -> None:
    start = empty_replay(prompts("a", "b"))
    statistics = replay_statistics(start["chosen_reward"], without_texts(start), 0)
    assert statistics.pop("pairs") == 0
    assert set(statistics.values()) == {None}


def test_a_constant_has_no_correlation() -> None:
    reward, length = np.full(7, 0.1), np.arange(7)  # the mean of 0.1 is not 0.1
    assert correlation(reward, length) is None
    assert correlation(length, reward) is None
    assert correlation(-length, length) == pytest.approx(-1.0)


def test_paired_difference_uses_only_prompts_on_both_sides() -> None:
    change = paired_difference({"a": 0.0, "b": 1.0, "x": 100.0}, {"a": 1.0, "b": 2.0, "y": -100.0})
    assert (change["before"], change["after"], change["prompts"]) == (0.5, 1.5, 2)
    assert change["low"] == change["high"] == pytest.approx(1.0)
    assert not math.isnan(change["difference"])
