"""Selectors beyond the paper: rankings by hand, and invariances."""

from __future__ import annotations

import math
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.data.schemas import REPLAY, only
from optune_core.history import NOTHING_YET
from optune_core.selection import select, selection_size
from optune_core.selection.bandit import OPTIMISM
from optune_core.selection.registry import SELECTORS
from optune_core.selection.relative import PRIOR_DEGREES
from optune_core.selection.selector import Selector

Row = dict[str, Any]
BEYOND = ["margin", "relative", "bandit"]


def row(
    chosen: float | None = None,
    rejected: float | None = None,
    *,
    scored: list[float] | None = None,
    gains: list[float] | None = None,
) -> Row:
    """A prompt of a replay set.

    Args:
        chosen, rejected: rewards of its pair.
        scored: what all its responses scored; default: those of the pair.
        gains: of its regenerations.
    """
    rewards = [r for r in (chosen, rejected) if r is not None] if scored is None else scored
    history: Row = dict(NOTHING_YET)
    if rewards:
        mean = sum(rewards) / len(rewards)
        variance = sum((r - mean) ** 2 for r in rewards) / len(rewards)
        history |= {"responses_scored": len(rewards), "reward_mean": mean, "reward_variance": variance}
    if gains:
        history |= {"regenerations": len(gains), "gain_mean": sum(gains) / len(gains)}
    return {"chosen_reward": chosen, "rejected_reward": rejected} | history


def table(rows: dict[str, Row], selector: str) -> pa.Table:
    """Return the columns that selection holds in memory: those of the selector, no others."""
    schema = only(REPLAY, "prompt_id", *SELECTORS.find(selector).columns)
    return pa.Table.from_pylist([{"prompt_id": prompt_id} | row for prompt_id, row in rows.items()], schema=schema)


def ranks(selector: str, *rows: Row) -> list[float]:
    return (
        SELECTORS.parse({"type": selector})
        .rank(table({str(at): row for at, row in enumerate(rows)}, selector))
        .tolist()
    )


def chosen(selector: str, rho: float) -> Selector:
    return SELECTORS.parse({"type": selector, "rho": rho})


def order(selector: str, rows: dict[str, Row]) -> str:
    """The ids of all prompts, lowest rank first."""
    return "".join(select(table(rows, selector), chosen(selector, 1.0), seed=0, iteration=1).to_pylist())


def test_the_configuration_accepts_exactly_the_registered_selectors() -> None:
    assert {name: SELECTORS.find(name).model_fields["type"].default for name in SELECTORS.paths} == {
        name: name for name in SELECTORS.paths
    }


@pytest.mark.parametrize("selector", ["optune", *BEYOND])
def test_prompts_without_a_pair_come_first(selector: str) -> None:
    rows = {"a": row(-9.0, -9.5, gains=[9.0]), "b": row(scored=[4.0]), "c": row(2.0, 1.9), "d": row()}
    assert set(order(selector, rows)[:2]) == {"b", "d"}
    assert ranks(selector, *rows.values())[1] == -math.inf


@pytest.mark.parametrize("selector", BEYOND)
def test_a_replay_set_without_any_pair_is_ranked_by_the_hash_alone(selector: str) -> None:
    assert ranks(selector, row(), row()) == [-math.inf, -math.inf]
    assert order(selector, {"a": row(), "b": row(), "c": row()}) == order(
        "random", {"a": row(), "b": row(), "c": row()}
    )


def test_margin_takes_the_smallest_gap_whatever_the_rewards() -> None:
    assert ranks("margin", row(9.0, 5.0), row(-3.0, -4.0), row(0.0, -0.5)) == [4.0, 1.0, 0.5]
    assert order("margin", {"a": row(9.0, 5.0), "b": row(-3.0, -4.0), "c": row(0.0, -0.5)}) == "cba"


def test_relative_ranks_equal_values_by_hand() -> None:
    # a: scored 1, 3, 8, 4: mean 4, squares 9 + 1 + 16 + 0 = 26, d = 3; its pair's chosen scored 4.
    # b: scored 0, 2: mean 1, squares 2, d = 1; chosen 2. All prompts: s₀² = (26 + 2) / (3 + 1) = 7.
    first, second = row(4.0, 1.0, scored=[1.0, 3.0, 8.0, 4.0]), row(2.0, 0.0)
    d0 = PRIOR_DEGREES
    assert ranks("relative", first, second) == pytest.approx([0.0, 1.0 / math.sqrt((2 + d0 * 7) / (1 + d0))])
    # One response has no spread of its own: it is all prompts' that counts.
    assert ranks("relative", second, row(5.0, 3.0, scored=[4.0]))[1] == pytest.approx(1.0 / math.sqrt(d0 * 2 / d0))


def test_relative_ranks_two_samples_by_their_margin() -> None:
    rows = {"a": row(9.0, 5.0), "b": row(-3.0, -4.0), "c": row(0.0, -0.5), "d": row(1.0, -1.0)}
    assert order("relative", rows) == order("margin", rows) == "cbda"


def test_relative_prefers_a_pair_below_the_earlier_rewards_of_its_prompt() -> None:
    """The same pair at the same chosen reward: equal for `optune`, not for a selector that knows the prompts."""
    easy = row(2.0, 1.0, scored=[5.0, 6.0, 2.0, 1.0])
    hard = row(2.0, 1.0, scored=[-3.0, -4.0, 2.0, 1.0])
    assert order("relative", {"h": hard, "e": easy}) == "eh"
    assert ranks("relative", easy)[0] < 0 < ranks("relative", hard)[0]


def test_relative_ranks_are_zero_where_no_reward_ever_differed() -> None:
    assert ranks("relative", row(1.0, 1.0), row(2.0, scored=[2.0])) == [0.0, 0.0]


def test_bandit_ranks_equal_values_by_hand() -> None:
    # Gains 1 and 3 twice: t = 3, ḡ = (1 + 2·3) / 3 = 7/3, σ² = (1·(4/3)² + 2·(2/3)²) / 3 = 8/9.
    once, twice, never = row(0.0, 0.0, gains=[1.0]), row(0.0, 0.0, gains=[2.0, 4.0]), row(0.0, 0.0)
    width = OPTIMISM * math.sqrt(8 / 9) * math.sqrt(math.log(3))
    assert ranks("bandit", once, twice, never) == pytest.approx(
        [-(1 + width), -(3 + width / math.sqrt(2)), -(7 / 3 + width)]
    )


def test_bandit_selects_at_random_before_any_regeneration() -> None:
    rows = {prompt_id: row(float(at), 0.0) for at, prompt_id in enumerate("abcdefgh")}
    assert order("bandit", rows) == order("random", rows)


def test_bandit_prefers_higher_gains_and_fewer_regenerations() -> None:
    rows = {"a": row(0.0, 0.0, gains=[1.0]), "b": row(0.0, 0.0, gains=[3.0]), "c": row(0.0, 0.0)}
    assert order("bandit", rows) == "bca"
    tired = {"a": row(0.0, 0.0, gains=[1.0] * 9), "b": row(0.0, 0.0, gains=[1.0]), "c": row(0.0, 0.0, gains=[-1.0])}
    assert order("bandit", tired)[0] == "b"


REWARD = st.integers(-8, 8).map(float)
PROMPT = st.one_of(
    st.just(row()),
    st.builds(
        lambda pair, more, gains: row(max(pair), min(pair), scored=[*pair, *more], gains=gains),
        st.tuples(REWARD, REWARD),
        st.lists(REWARD, max_size=4),
        st.lists(REWARD, max_size=3),
    ),
)
REPLAYS = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), PROMPT, min_size=1, max_size=12)


@given(rows=REPLAYS, rho=st.sampled_from([0.1, 0.5, 1.0]), shuffle=st.randoms(use_true_random=False))
@pytest.mark.parametrize("selector", BEYOND)
def test_selection_does_not_depend_on_the_order_of_the_file(
    selector: str, rows: dict[str, Row], rho: float, shuffle: random.Random
) -> None:
    items = list(rows.items())
    shuffle.shuffle(items)
    options: Any = {"selector": chosen(selector, rho), "seed": 0, "iteration": 1}
    selected = select(table(rows, selector), **options).to_pylist()
    assert select(table(dict(items), selector), **options).to_pylist() == selected
    assert len(selected) == len(set(selected)) == selection_size(len(rows), rho)


@given(rows=REPLAYS, scale=st.sampled_from([0.25, 4.0]), shifts=st.lists(REWARD, min_size=12, max_size=12))
@pytest.mark.parametrize("selector", BEYOND)
def test_ranks_do_not_depend_on_the_offset_of_a_prompt_or_the_scale_of_rewards(
    selector: str, rows: dict[str, Row], scale: float, shifts: list[float]
) -> None:
    """Bradley-Terry rewards are determined up to a constant a prompt, and a reward model's scale is its own."""

    def moved(row: Row, shift: float) -> Row:
        new = dict(row)
        for name in ("chosen_reward", "rejected_reward", "reward_mean"):
            new[name] = None if row[name] is None else scale * row[name] + shift
        for name, factor in (("reward_variance", scale**2), ("gain_mean", scale)):
            new[name] = None if row[name] is None else factor * row[name]
        return new

    before = ranks(selector, *rows.values())
    after = ranks(selector, *(moved(row, shift) for row, shift in zip(rows.values(), shifts, strict=False)))
    factor = 1.0 if selector == "relative" else scale
    assert after == pytest.approx([factor * rank for rank in before], rel=1e-9, abs=1e-9)
