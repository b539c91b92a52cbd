"""Algorithm 1's ranking: exactly ⌈ρ·|P|⌉ prompts, the lowest chosen rewards, whatever the order of the file."""

import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.data.id_hash import hash_ids
from optune_core.errors import DataError
from optune_core.selection import RankingSelector, Selector, select, selection_size
from optune_core.selection.registry import SELECTORS


def replay(rewards: dict[str, float | None]) -> pa.Table:
    return pa.table(
        {
            "prompt_id": pa.array(list(rewards), pa.string()),
            "chosen_reward": pa.array(list(rewards.values()), pa.float64()),
        }
    )


def named(selector: str, rho: float) -> Selector:
    ratio = {"rho": rho} if issubclass(SELECTORS.find(selector), RankingSelector) else {}
    return SELECTORS.parse({"type": selector, **ratio})


def choose(rewards: dict[str, float | None], selector: str = "optune", rho: float = 0.5, **kwargs: int) -> list[str]:
    arguments = {"seed": 0, "iteration": 1} | kwargs
    return select(replay(rewards), named(selector, rho), **arguments).to_pylist()


@pytest.mark.parametrize(
    ("prompts", "rho", "size"),
    [(10, 0.3, 3), (10, 0.31, 4), (48_000, 0.7, 33_600), (3, 0.5, 2), (1, 0.001, 1), (7, 1.0, 7), (100, 0.29, 29)],
)
def test_size_is_the_ceiling_of_rho_times_prompts(prompts: int, rho: float, size: int) -> None:
    assert selection_size(prompts, rho) == size


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.01, math.nan])
def test_rho_outside_its_range_is_refused(rho: float) -> None:
    with pytest.raises(DataError, match="must lie in"):
        selection_size(10, rho)


def test_optune_takes_the_lowest_chosen_rewards_in_order() -> None:
    assert choose({"a": 3.0, "b": -1.0, "c": 2.0, "d": 0.5}) == ["b", "d"]


def test_prompts_without_a_pair_come_first() -> None:
    assert choose({"a": -9.0, "b": None, "c": 2.0, "d": 0.5})[0] == "b"


def test_random_ignores_rewards_and_changes_with_the_iteration() -> None:
    rewards = {f"p{i}": float(i) for i in range(100)}
    shuffled = {prompt_id: -reward for prompt_id, reward in rewards.items()}
    assert choose(rewards, "random") == choose(shuffled, "random")
    assert set(choose(rewards, "random", iteration=1)) != set(choose(rewards, "random", iteration=2))
    assert set(choose(rewards, "random", seed=1)) != set(choose(rewards, "random", seed=2))


def test_selector_all_takes_every_prompt_and_none_takes_no_prompt() -> None:
    rewards = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert sorted(choose(rewards, "all")) == ["a", "b", "c"]
    assert choose(rewards, "none") == []


@given(
    rewards=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=6), st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0])), min_size=1
    ),
    rho=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    selector=st.sampled_from(["optune", "random"]),
    order=st.randoms(use_true_random=False),
)
def test_selection_does_not_depend_on_the_order_of_the_file(
    rewards: dict[str, float | None], rho: float, selector: str, order: random.Random
) -> None:
    items = list(rewards.items())
    order.shuffle(items)
    selected = choose(rewards, selector, rho)
    assert choose(dict(items), selector, rho) == selected
    assert len(selected) == len(set(selected)) == selection_size(len(rewards), rho)
    if selector == "optune":
        low = [-math.inf if rewards[p] is None else rewards[p] for p in selected]
        rest = [-math.inf if r is None else r for p, r in rewards.items() if p not in selected]
        assert low == sorted(low)
        assert not rest or max(low) <= min(rest)


def test_hashes_of_ids_differ_and_use_every_bit() -> None:
    ids = pa.chunked_array([[f"{i:032x}" for i in range(60_000)], [f"{i:032x}" for i in range(60_000, 100_000)]])
    hashes = hash_ids(ids, "1/2")
    assert len(np.unique(hashes)) == len(ids)
    assert not np.isin(hash_ids(ids, "1/3"), hashes).any()
    for bit in range(64):
        share = float(np.mean(hashes >> np.uint64(bit) & np.uint64(1)))
        assert share == pytest.approx(0.5, abs=0.01)  # six standard deviations


def test_the_hash_of_an_id_does_not_depend_on_its_row() -> None:
    ids = [f"{i:032x}" for i in range(20_000)]
    forwards, backwards = (hash_ids(pa.chunked_array([each]), "") for each in (ids, ids[::-1]))
    assert (forwards == backwards[::-1]).all()
