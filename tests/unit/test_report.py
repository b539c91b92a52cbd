"""The numbers of a report, compared with numbers made by hand; and pages with hostile texts."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.reports.analysis import correlations, count_responses, log_ratios, pair_facts
from optune_core.reports.examples import ranked_changes
from optune_core.reports.facts import Example, HeldOut, Version
from optune_core.reports.figures import thinned, time_shares
from optune_core.reports.page import RunPage, clip, differing_settings, mean_reused_age, minus, render_page
from optune_core.reports.svg import axis_range, ticks
from optune_core.statistics import half_gains
from tests.unit.facts import CONFIG, SECONDS, iteration, sound_run


def replay(chosen: list[float | None], rejected: list[float | None], made: list[int | None]) -> pa.Table:
    """Return a table like that of `pair_numbers`; tokens are 1, 2, 3, … and twice that."""
    rows = len(chosen)
    return pa.table(
        {
            "chosen_reward": pa.array(chosen, pa.float64()),
            "rejected_reward": pa.array(rejected, pa.float64()),
            "chosen_tokens": pa.array(range(1, rows + 1), pa.int32()),
            "rejected_tokens": pa.array(range(2, 2 * rows + 1, 2), pa.int32()),
            "generated_at": pa.array(made, pa.int32()),
            "regenerated": pa.array([t == 1 for t in made]),
        }
    )


def test_prompts_without_a_pair_are_left_out_and_weights_are_those_of_equation_6() -> None:
    facts = pair_facts(replay([2.0, None, 0.0], [1.0, None, 0.0], [0, None, 1]), beta2=1.0, min_reward_gap=None)
    assert facts.gaps.tolist() == [1.0, 0.0]
    assert facts.made == {0: 1, 1: 1}
    assert facts.weights == pytest.approx([1 / (1 + np.exp(-1)), 0.5])
    assert facts.effective_share == pytest.approx((0.7310586 + 0.5) ** 2 / (0.7310586**2 + 0.25) / 2)


def test_pairs_below_the_least_gap_have_no_weight_but_count_as_pairs() -> None:
    facts = pair_facts(replay([2.0, 0.1], [1.0, 0.0], [0, 0]), beta2=0.0, min_reward_gap=0.5)
    assert len(facts.gaps) == 2
    assert facts.weights.tolist() == [0.5]


@settings(deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=30), st.floats(0, 10))
def test_best_against_worst_is_worth_at_least_eight_ninths(gaps: list[float], beta2: float) -> None:
    facts = pair_facts(replay(list(gaps), [0.0] * len(gaps), [0] * len(gaps)), beta2, None)
    assert facts.effective_share is not None
    assert 8 / 9 - 1e-9 <= facts.effective_share <= 1 + 1e-9


def test_correlations_by_side() -> None:
    facts = pair_facts(replay([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0, 0, 0]), 1.0, None)
    found = correlations(facts)
    assert (found["chosen"], found["rejected"]) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert found["both"] == pytest.approx(np.corrcoef([1, 2, 3, 3, 2, 1], [1, 2, 3, 2, 4, 6])[0, 1])
    assert correlations(pair_facts(replay([], [], []), 1.0, None)) == dict.fromkeys(found)


def test_gains_of_the_two_halves() -> None:
    """Previous rewards 1, 2 below and 3, 4 above; neither prompts without an earlier pair nor reused ones gain."""
    before = pa.chunked_array([pa.array([4.0, 1.0, None, 2.0, 3.0])])
    after = replay([4.5, 3.0, 9.0, 2.0, 2.0], [0.0] * 5, [1, 1, 1, 0, 1])
    assert half_gains(before, after) == (2.0, -0.5)


def test_log_ratios_are_of_the_last_quarter_of_the_steps() -> None:
    log = [{"rewards/chosen": float(step), "rewards/rejected": -float(step)} for step in range(1, 6)]
    assert log_ratios(log, beta1=0.5) == {"chosen": 9.0, "rejected": -9.0}
    assert log_ratios([], 0.5) == {"chosen": None, "rejected": None}
    assert log_ratios([{"loss": 1.0}], None) == {"chosen": None, "rejected": None}  # Best-of-N
    of_samples = {"kl": 0.1}  # a step of HyPO that drew no pair
    assert log_ratios([*log[:-1], of_samples], beta1=0.5) == {"chosen": 8.0, "rejected": -8.0}
    assert iteration(0).kl_estimate == pytest.approx(0.05)


def test_a_loss_without_weights_has_none() -> None:
    facts = pair_facts(replay([2.0, 0.1], [1.0, 0.0], [0, 0]), beta2=None, min_reward_gap=None)
    assert facts.weights.size == 0 and facts.effective_share is None


def test_shards_of_responses_count_together() -> None:
    shard = {"responses": 4, "tokens": 40, "truncated": 1, "distinct": 3}
    both = count_responses([shard, shard])
    assert both is not None
    assert (both.mean_tokens, both.truncated_share, both.distinct_share) == (10.0, 0.25, 0.75)
    old = count_responses([shard, {name: shard[name] for name in ("responses", "tokens", "truncated")}])
    assert old is not None and old.distinct_share is None
    assert count_responses([]) is None


def test_the_speed_up_of_a_run_is_bounded() -> None:
    speedup = sound_run().speedup
    assert speedup["speedup"] == pytest.approx(245 / 200)
    assert speedup["bound"] == pytest.approx(243 / 198)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=20))
def test_largest_changes_come_first_and_have_their_sign(rows: list[tuple[float, float]]) -> None:
    first, last = (np.array([row[side] for row in rows], float) for side in (0, 1))
    change = last - first
    rises, falls = ranked_changes(first, last, 3)
    assert sorted(change[rises], reverse=True) == list(change[rises])
    assert sorted(change[falls]) == list(change[falls])
    assert len(rises) == min(3, int((change > 0).sum()))
    assert len(falls) == min(3, int((change < 0).sum()))
    assert all(change[rises] > 0) and all(change[falls] < 0)


def test_a_prompt_without_a_pair_at_either_end_has_not_changed() -> None:
    assert ranked_changes(np.array([np.nan, 1.0]), np.array([5.0, np.nan]), 3) == ([], [])


def test_time_shares_are_those_of_table_1() -> None:
    assert time_shares(SECONDS) == {"generate": 0.5, "score": 0.05, "train": 0.44, "rank and merge": 0.01}


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=700), st.integers(1, 240))
def test_a_thinned_curve_keeps_its_mean_and_its_steps(values: list[float], most: int) -> None:
    points = thinned(np.array(values), most)
    assert len(points) <= most
    width = -(-len(values) // most)
    sizes = [min(width, len(values) - first) for first in range(0, len(values), width)]
    assert sum(size * y for size, (_, y) in zip(sizes, points, strict=True)) == pytest.approx(sum(values), abs=1e-6)
    assert sum(size * x for size, (x, _) in zip(sizes, points, strict=True)) == pytest.approx(
        sum(range(1, len(values) + 1))
    )


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_inside_and_evenly_spaced(low: float, width: float, most: int) -> None:
    found = ticks(low, low + width, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * width <= tick <= low + 1.000001 * width for tick in found)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=5))
def test_an_axis_holds_its_values_and_is_not_empty(values: list[float]) -> None:
    low, high = axis_range(values, include=[0.0])
    assert low < high
    assert all(low <= value <= high for value in [*values, 0.0])


def test_only_what_differs_is_compared() -> None:
    other = replace(sound_run(), run="b", config=CONFIG | {"name": "b", "training": CONFIG["training"] | {"beta2": 0}})
    assert differing_settings([sound_run(), other]) == [("training.beta2", ["1.0", "0"])]


def test_age_is_of_the_pairs_that_were_not_made_now() -> None:
    assert mean_reused_age(iteration(0)) is None
    pairs = replace(iteration(1).pairs, made={3: 7, 2: 1, 0: 2})
    assert mean_reused_age(iteration(1, summary=iteration(1).summary | {"iteration": 3}, pairs=pairs)) == 7 / 3


def test_negative_numbers_get_a_minus_and_names_keep_their_hyphens() -> None:
    assert minus("-1.5 [-2, +3] of zephyr-7b-2, 2024-01-02") == "−1.5 [−2, +3] of zephyr-7b-2, 2024-01-02"


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "</p></svg><script>alert(1)</script><img src=x onerror='alert(2)'>\"' {{ 7 * 7 }}"


def hostile_page(**changes: Any) -> str:
    texts: dict[str, str | None] = {"chosen": HOSTILE, "rejected": HOSTILE}
    version = Version(0, "regenerated", HOSTILE, texts, {"chosen": 1.0, "rejected": 0.0}, {"chosen": 3, "rejected": 4})
    example = Example("id", HOSTILE, 0.0, 1.0, [version])
    record = {
        "name": HOSTILE,
        "iteration": 1,
        "baseline": HOSTILE,
        "judge": HOSTILE,
        "metrics": {"win_score": 55.0, "low": 50.0, "high": 60.0, "wins": 2, "ties": 1, "losses": 1, "malformed": 0},
    }
    run = sound_run(comparisons=[record], config=CONFIG | {"policy": {"model": HOSTILE}}, store=HOSTILE, **changes)
    page = RunPage(run, [example], [example], against_first={})
    return render_page([page, replace(page, facts=replace(run, run="other"))])


def test_untrusted_text_stays_text() -> None:
    parsed = Tags()
    page = hostile_page()
    parsed.feed(page)
    assert parsed.tags.isdisjoint({"script", "img", "iframe", "link", "object", "form"})
    assert not [name for name in parsed.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert HOSTILE in parsed.text
    assert not re.search(r"url\(|@import|https?:", page), "the page would load something"


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": [], "held_out": []},
        {"iterations": [iteration(0)], "held_out": []},
        {"held_out": [HeldOut(0, {}, None)]},
        {"iterations": [iteration(t, fresh=None, selected=0, gains=None, log=[]) for t in (0, 1)]},
    ],
)
def test_page_renders_with_parts_missing(changes: dict[str, Any]) -> None:
    parsed = Tags()
    parsed.feed(hostile_page(**changes))
    assert "What was run" in parsed.text


def test_texts_of_a_page_have_a_budget() -> None:
    long = {"chosen": "x" * 20_000, "rejected": "y" * 20_000}
    versions = [Version(t, "regenerated", None, long, dict.fromkeys(long), dict.fromkeys(long)) for t in range(20)]  # type: ignore[arg-type]
    examples = [Example(str(n), "z" * 20_000, 0.0, 1.0, versions) for n in range(5)]
    page = render_page([RunPage(sound_run(), examples, examples, against_first={})])
    assert 100_000 < len(page.encode()) < 1 << 19
    assert clip("abcdef", 3) == "abc … (3 characters more)"
