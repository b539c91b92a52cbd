"""The cells of a sweep's file: their names, their order, and every mistake before the work begins."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optune_core.config import load_config
from optune_core.errors import ConfigError
from optune_core.parts.names import is_name
from optune_core.sweep.grid import Cell, cell_name, load_sweep
from optune_core.sweep.order import SweepOrder
from optune_core.sweep.results import selection_label
from tests.tiny import write_config

GRID: dict[str, list[Any]] = {
    "selection.rho": [0.3, 0.5],
    "selection.type": ["optune", "random"],
    "training.loss.beta2": [1.0, 0.0],
    "seed": [0, 1],
}


def write(folder: Path, **changes: Any) -> Path:
    base = folder / "tiny.yaml"
    if not base.exists():
        write_config(folder)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "swept", "base": str(base), "grid": GRID} | changes, sort_keys=False))
    return path


def cells(folder: Path, **changes: Any) -> list[Cell]:
    return load_sweep(write(folder, **changes)).cells


def problems(folder: Path, *overrides: str, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(folder, **changes), overrides)
    return caught.value.problems


def test_every_combination_is_a_cell_with_its_own_values(tmp_path: Path) -> None:
    made = cells(tmp_path)
    assert len(made) == len({cell.run for cell in made}) == 16
    first = made[0]
    assert first.run == "swept-rho_0.3-selection_optune-beta2_1-seed_0"
    assert first.config.name == first.run
    assert (first.config.selection.rho, first.config.training.loss.beta2, first.config.seed) == (0.3, 1.0, 0)
    last = made[-1].config
    assert (last.selection.type, last.training.loss.beta2, last.seed) == ("random", 0.0, 1)


@pytest.mark.parametrize("name", ["off", "12", "1e5", "null"])
def test_sweep_names_that_look_like_other_yaml_values_stay_text(tmp_path: Path, name: str) -> None:
    (cell,) = cells(tmp_path, name=name, grid={"seed": [0]})
    assert cell.config.name == f"{name}-seed_0"
    assert load_config(tmp_path / "tiny.yaml", cell.overrides) == cell.config


def test_overrides_are_for_all_cells_and_below_the_grid(tmp_path: Path) -> None:
    made = load_sweep(write(tmp_path), ["iterations=5"]).cells
    assert {cell.config.iterations for cell in made} == {5}
    (problem,) = problems(tmp_path, "selection.rho=0.9")
    assert "selection.rho is in the grid" in problem


@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_names_do_not_depend_on_order_or_on_other_values(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("grid")
    before = {cell.run: cell.config for cell in cells(folder)}
    keys = list(GRID)
    draw.shuffle(keys)
    more: dict[str, list[Any]] = {"selection.rho": [0.7], "training.loss.beta2": [0.5, 2], "seed": [7]}
    grown = {key: draw.sample(GRID[key] + more.get(key, []), len(GRID[key] + more.get(key, []))) for key in keys}
    after = {cell.run: cell.config for cell in cells(folder, grid=grown)}
    assert len(after) == 3 * 2 * 4 * 3
    assert {run: after[run] for run in before} == before


@given(
    st.dictionaries(st.sampled_from(["seed", "generation.max_tokens", "prompts.max_tokens"]), st.integers(), min_size=1)
)
def test_different_values_give_different_cell_names(values: dict[str, Any]) -> None:
    name = cell_name("s", values)
    other = {key: value + 1 for key, value in values.items()}
    assert cell_name("s", other) != name
    assert is_name(name) or len(name) > 64


@pytest.mark.parametrize(
    ("value", "part"),
    [(1.0, "1"), (0.3, "0.3"), (5e-7, "5e-07"), (True, "true"), (None, "none"), ("Org/Model", "org-model"), (-1, "-1")],
)
def test_values_are_written_into_cell_names(value: Any, part: str) -> None:
    assert cell_name("s", {"section.key": value}) == f"s-key_{part}"


def test_cells_that_compute_the_same_are_refused_with_the_line_that_helps(tmp_path: Path) -> None:
    grid = {"selection.rho": [0.5, 1.0], "selection.type": ["optune", "random"]}
    (problem,) = problems(tmp_path, grid=grid)
    assert "swept-rho_1-selection_optune and swept-rho_1-selection_random compute the same" in problem
    advice = yaml.safe_load(problem.partition("with ")[2])
    assert len(cells(tmp_path, grid=grid, **advice)) == 3


def test_selector_all_is_the_same_cell_as_rho_one(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, grid={"selection.rho": [1.0]}, include=[{"selection.type": "all"}])
    assert "swept-selection_all compute the same" in problem


def test_offline_cells_differ_by_the_share_of_hypos_samples_and_have_no_rho_of_their_own(tmp_path: Path) -> None:
    offline = ["selection.type=none", "prompts.pairs={}"]
    with pytest.raises(ConfigError, match=r"selection\.rho: unknown key"):
        load_sweep(write(tmp_path, grid={"selection.rho": [0.3, 0.5]}), offline)
    hypo = ["training.loss.type=hypo", "training.loss.kl_coefficient=0.1"]
    made = load_sweep(write(tmp_path, grid={"training.loss.rho": [0.3, 0.5]}), [*offline, *hypo]).cells
    assert [selection_label(cell.config) for cell in made] == [
        "offline, samples of ρ = 0.3",
        "offline, samples of ρ = 0.5",
    ]


def test_include_makes_cells_beside_the_grid(tmp_path: Path) -> None:
    made = cells(tmp_path, grid={"seed": [0, 1]}, include=[{"selection.type": "all", "seed": [0, 1]}])
    assert [cell.run for cell in made[2:]] == ["swept-selection_all-seed_0", "swept-selection_all-seed_1"]
    assert made[2].config.selection.type == "all"
    (problem,) = problems(tmp_path, grid={"seed": [0, 1]}, include=[{"seed": 1}])
    assert "cell swept-seed_1 is given twice" in problem


def test_all_mistakes_are_reported_together_with_their_cells(tmp_path: Path) -> None:
    grid = {"selection.rho": [0.5, 3], "selection.slector": ["optune"], "seed": [0, 1]}
    found = problems(tmp_path, grid=grid)
    assert len(found) == 2
    (unknown,) = (line for line in found if "selection.slector: unknown key" in line)
    assert unknown.endswith("(every cell)")
    (rho,) = (line for line in found if "selection.rho = 3" in line)
    assert "cell selection.rho = 3, selection.slector = optune, seed = 0; cell" in rho


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {}}, "at least 1 item"),
        ({"grid": {"seed": []}}, "grid.seed: holds no value"),
        ({"grid": {"seed": [0, 1, 0]}}, "grid.seed: 0 is given 2 times"),
        ({"grid": {"selection.rho": [1, 1.0]}}, "is given twice"),
        ({"grid": {"name": ["a", "b"]}}, "name: cannot be in the grid"),
        ({"exclude": [{"seed": 4}]}, "no cell of the grid has these values"),
        ({"exclude": [{"seed": [0, 1]}]}, "leaves no cell"),
        ({"ro": [1]}, "ro: unknown key"),
        ({"name": "a" * 40}, "no valid name of a run"),
        ({"name": "no/path"}, "not a valid name"),
        ({"base": "absent.yaml"}, "cannot be read"),
        ({"parallel": 0}, "parallel = 0"),
    ],
)
def test_an_impossible_sweep_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in "\n".join(problems(tmp_path, **changes))


# ---------------------------------------------------------------- the order of the work


def start_all(order: SweepOrder, waiting: list[Cell], past: set[str]) -> list[str]:
    """Return the cells that would be started now, in order, with unlimited workers."""
    waiting, started = list(waiting), list[str]()
    while cell := order.next(waiting, started, past):
        waiting.remove(cell)
        started.append(cell.run)
    return started


def test_one_cell_a_seed_goes_first_then_one_a_loss_then_the_rest(tmp_path: Path) -> None:
    made = cells(tmp_path)
    order = SweepOrder(made)
    first = start_all(order, made, set())
    assert first == ["swept-rho_0.3-selection_optune-beta2_1-seed_0", "swept-rho_0.3-selection_optune-beta2_1-seed_1"]
    rest = [cell for cell in made if cell.run not in first]
    # Seed 0 has its iteration 0 with wDPO: all its wDPO cells may go, and one of DPO, which trains the other policy.
    begun = [cell for cell in made if cell.run in first]
    waiting, at_work = list(rest), [cell.run for cell in begun]
    second = []
    while cell := order.next(waiting, at_work, {first[0]}):
        waiting.remove(cell)
        at_work.append(cell.run)
        second.append(cell)
    assert {cell.config.seed for cell in second} == {0}
    assert sum(cell.config.training.loss.beta2 == 1.0 for cell in second) == 3
    assert sum(cell.config.training.loss.beta2 == 0.0 for cell in second) == 1


def test_cells_that_share_no_work_start_at_once(tmp_path: Path) -> None:
    made = cells(tmp_path, grid={"seed": [0, 1, 2, 3]})
    assert start_all(SweepOrder(made), made, set()) == [cell.run for cell in made]


def test_the_next_cell_takes_the_place_of_a_failed_first_one(tmp_path: Path) -> None:
    made = cells(tmp_path, grid={"selection.rho": [0.3, 0.5, 0.7]})
    order = SweepOrder(made)
    assert start_all(order, made, set()) == [made[0].run]
    assert order.next(made[1:], [], set()) is made[1]


@settings(max_examples=20)
@given(st.integers())
def test_no_order_of_events_leaves_cells_waiting_forever(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    made = cells(tmp_path_factory.getbasetemp())
    order = SweepOrder(made)
    waiting, at_work, past = list(made), list[str](), set[str]()
    while waiting or at_work:
        if cell := order.next(waiting, at_work, past):
            waiting.remove(cell)
            at_work.append(cell.run)
            continue
        assert at_work, "cells wait though nobody works"
        run = draw.choice(at_work)
        if draw.random() < 0.5:  # it gets on
            past.add(run)
        elif draw.random() < 0.5:  # it ends, well or not
            at_work.remove(run)
