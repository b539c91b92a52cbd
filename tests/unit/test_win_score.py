"""The win score (Eq. 7) by hand, and scores read from the replies of a judge."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.data.schemas import COMPARISONS
from optune_core.errors import JudgeError
from optune_core.evaluation.win_score.judgements import combine_judgements, judgement, win_score, win_score_interval
from optune_core.evaluation.win_score.rating import parse_scores, rating_messages, rating_prompt
from optune_core.evaluation.win_score.summary import summarise_comparisons

JUDGEMENTS = st.sampled_from(["win", "tie", "lose"])
MIRROR = {"win": "lose", "tie": "tie", "lose": "win"}


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("win", "win", "win"),
        ("win", "tie", "win"),
        ("tie", "win", "win"),
        ("win", "lose", "tie"),
        ("lose", "win", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "lose", "lose"),
        ("lose", "tie", "lose"),
        ("lose", "lose", "lose"),
    ],
)
def test_two_judgements_are_combined_to_an_outcome(first: Any, second: Any, outcome: str) -> None:
    assert combine_judgements(first, second) == outcome


@given(JUDGEMENTS, JUDGEMENTS)
def test_neither_order_nor_side_is_favoured(first: Any, second: Any) -> None:
    assert combine_judgements(first, second) == combine_judgements(second, first)
    assert combine_judgements(MIRROR[first], MIRROR[second]) == MIRROR[combine_judgements(first, second)]  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["WIN", "", "loss", None])
def test_an_unknown_judgement_is_refused(bad: Any) -> None:
    for pair in ((bad, "win"), ("tie", bad)):
        with pytest.raises(ValueError, match="is not a judgement: it is one of 'win', 'tie', 'lose'"):
            combine_judgements(*pair)


@pytest.mark.parametrize(
    ("wins", "losses", "total", "score"),
    [(0, 0, 1, 50), (10, 0, 10, 150), (0, 10, 10, -50), (5, 5, 10, 50), (120, 90, 300, 60), (1, 2, 8, 37.5)],
)
def test_win_scores_equal_values_by_hand(wins: int, losses: int, total: int, score: float) -> None:
    assert win_score(wins, losses, total) == score


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 0, 0), "total=0: .* at least one"),
        ((0, 0, -3), "total=-3"),
        ((-1, 0, 5), "wins=-1, losses=0: .*not negative"),
        ((0, -1, 5), "not negative"),
        ((3, 3, 5), r"wins=3 \+ losses=3 are more than total=5"),
    ],
)
def test_impossible_counts_are_refused(counts: tuple[int, int, int], message: str) -> None:
    for function in (win_score, win_score_interval):
        with pytest.raises(ValueError, match=message):
            function(*counts)


@pytest.mark.parametrize("counts", [(40, 30, 100), (3, 20, 25), (150, 30, 300)])
def test_the_interval_equals_a_bootstrap_over_prompts(counts: tuple[int, int, int]) -> None:
    """The reference draws prompts one by one with replacement."""
    wins, losses, total = counts
    outcomes = [1] * wins + [-1] * losses + [0] * (total - wins - losses)
    draw = random.Random(3)
    scores = sorted(50 + 100 * sum(draw.choices(outcomes, k=total)) / total for _ in range(4000))
    low, high = win_score_interval(*counts)
    spread = scores[3899] - scores[100]
    assert low == pytest.approx(scores[100], abs=0.08 * spread)
    assert high == pytest.approx(scores[3899], abs=0.08 * spread)
    assert low < win_score(*counts) < high
    assert (low, high) == win_score_interval(*counts)


def test_the_interval_is_a_point_where_all_outcomes_are_equal() -> None:
    assert win_score_interval(7, 0, 7) == (150, 150)
    assert win_score_interval(0, 0, 7) == (50, 50)


@pytest.mark.parametrize(
    ("scores", "margin", "verdict"),
    [((8, 7), 0, "win"), ((7, 8), 0, "lose"), ((7, 7), 0, "tie"), ((0.5, 0.6), 0.1, "tie"), ((0.5, 0.7), 0.1, "lose")],
)
def test_two_scores_give_a_judgement_within_the_margin(
    scores: tuple[float, float], margin: float, verdict: str
) -> None:
    assert judgement(*scores, margin) == verdict


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7\nThe first is better.", (8, 7)),
        ("10 1", (10, 1)),
        ("\n 8.5 9 \nwords 3 4", (8.5, 9)),
        ("8, 7\nwords", (8, 7)),
        ("8\t7", (8, 7)),
    ],
)
def test_scores_are_read_from_replies_that_keep_to_the_prompt(reply: str, scores: tuple[float, float]) -> None:
    assert parse_scores(reply) == scores


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\n\n",
        "8",
        "8 7 6",
        "Assistant 1: 8, Assistant 2: 7",
        "The scores are\n8 7",
        "8/10 7/10",
        "87",
        "-8 7",
        "nan 7",
        "0 7",
        "8 11",
        "8e0 7",
    ],
)
def test_malformed_replies_are_not_guessed(reply: str) -> None:
    with pytest.raises(ValueError, match=r"not two scores|not both from 1 to 10"):
        parse_scores(reply)


def test_the_prompt_is_the_papers_and_fills_in_any_text() -> None:
    prompt = rating_prompt()
    assert prompt["system"] == "You are a helpful and precise assistant for checking the quality of the answers."
    assert prompt["user"].endswith("the order in which the responses were presented does not affect your judgment.")
    system, user = rating_messages("Why {so}?", ("{answer_2}", "100 % {}"))
    assert system == {"role": "system", "content": prompt["system"]}
    assert user["content"].startswith(
        "[Question]\nWhy {so}?\n[The Start of Assistant1’s Answer]\n{answer_2}\n[The End of Assistant1’s Answer]\n"
        "[The Start of Assistant2’s Answer]\n100 % {}\n[The End of Assistant2’s Answer]\nWe would like to request your"
    )


def table(*outcomes: str) -> pa.Table:
    rows = [
        {"outcome": outcome, "reason": "no scores", "requests": 3, "prompt_tokens": 1000, "completion_tokens": 200}
        for outcome in outcomes
    ]
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def test_malformed_prompts_are_left_out_of_the_win_score() -> None:
    metrics = summarise_comparisons(table("win", "win", "tie", "lose", "malformed"), (30.0, 60.0))
    assert {name: metrics[name] for name in ("wins", "ties", "losses", "total", "malformed")} == {
        "wins": 2,
        "ties": 1,
        "losses": 1,
        "total": 4,
        "malformed": 1,
    }
    assert metrics["win_score"] == 75
    assert (metrics["requests"], metrics["prompt_tokens"], metrics["completion_tokens"]) == (15, 5000, 1000)
    assert metrics["cost"] == pytest.approx(5000 * 30e-6 + 1000 * 60e-6)
    assert summarise_comparisons(table("win"), None)["cost"] is None


def test_a_judge_without_any_readable_judgement_is_an_error() -> None:
    with pytest.raises(JudgeError, match=r"all 2 judgements are malformed, such as: no scores\. Give a judge"):
        summarise_comparisons(table("malformed", "malformed"), None)
