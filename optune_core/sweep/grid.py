"""A sweep: a base configuration and a grid of values on top of it, with a run (a cell) for each combination.

The name of a cell is made of its own values only, so it stays the same when the grid is reordered or gets more values:
only the cells of added values are computed. An added key gives all cells new names, and so new runs, which find the
artifacts of the old runs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from optune_core.config.loading import parse_config, read_yaml, validate
from optune_core.config.run import OptuneConfig
from optune_core.errors import ConfigError
from optune_core.parts.names import Name, is_name
from optune_core.parts.section import Section
from optune_core.selection.everything import simplest

Scalar = bool | int | float | str | None
KeyValues = dict[str, Scalar | list[Scalar]]
"""`section.key` → one value or several."""


class SweepConfig(Section):
    """Content of the YAML file of a sweep."""

    name: Name
    """Name of the sweep, with which the names of its runs begin."""
    base: str
    """YAML file of the base configuration, as `optune run` takes it."""
    grid: dict[str, list[Scalar]] = Field(min_length=1)
    """`section.key` → its values. Every combination of values is a cell."""
    exclude: list[KeyValues] = Field(default_factory=list)
    """Cells of the grid that are left out: those with all values of an entry. A list matches each of its values."""
    include: list[KeyValues] = Field(default_factory=list)
    """Additional cells, such as baselines; keys that an entry does not name have the values of the base. A list makes
    one cell for each of its values."""
    evaluation: str | None = None
    """YAML file of an evaluation, as `optune evaluate` takes it, of every policy of every complete cell. Tables and
    figures show its win scores if it is of the kind `win_score`. Default: only the held-out rewards are compared."""
    parallel: int = Field(default=1, ge=1)
    """Number of cells that are computed at once on this machine, each by a process that uses all devices. It is ignored
    if cells run on a work pool, which has its own limit."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    run: str
    """Name of the run: `optune status RUN` shows it, `optune run --run RUN` continues it alone."""
    values: dict[str, Scalar]
    """`section.key` → validated value, for the keys in which cells differ."""
    overrides: list[str]
    """`section.key=value` on top of the sweep's base."""
    config: OptuneConfig


@dataclass(frozen=True)
class Sweep:
    """A validated sweep."""

    config: SweepConfig
    cells: list[Cell]
    """Cells in the order of the file."""


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep and validate all of its cells.

    Args:
        path: YAML file of the sweep.
        overrides: `section.key=value` on top of the base configuration, for all cells.

    Raises:
        ConfigError: the file, the base or a cell is invalid, or a cell is given twice; all problems are reported
            together.
    """
    config = validate(SweepConfig, read_yaml(path), [], source=str(path))
    problems = list(_grid_problems(config))
    for override in overrides:
        if (key := override.partition("=")[0]) in config.grid:
            problems.append(f"{override!r}: {key} is in the grid, whose values override it: change the grid")
    assignments = [*_grid(config), *_included(config)]
    if not (problems or assignments):
        problems = ["exclude leaves no cell of the grid: remove an entry"]
    if problems:
        raise ConfigError(problems, source=str(path))
    cells, problems = _validated(config, assignments, overrides)
    problems = problems or list(_cell_problems(cells))
    if problems:
        raise ConfigError(problems, source=str(path))
    return Sweep(config, cells)


def cell_name(sweep: str, values: Mapping[str, Scalar]) -> str:
    """Return the name of a cell, such as `demo-rho_0.3-selection_optune-seed_0`.

    It is the name of the sweep, then the last part and the value of each key, sorted by key with the seed last. For a
    key `section.type` the last part is the section. If two keys have the same last part, the complete keys are used.
    """
    lasts = Counter(_last(key) for key in values)

    def label(key: str) -> str:
        return _last(key) if lasts[_last(key)] == 1 else key

    ordered = sorted(values, key=lambda key: (key == "seed", key))
    return "-".join([sweep, *(f"{label(key)}_{_slug(values[key])}" for key in ordered)])


def _last(key: str) -> str:
    return key.removesuffix(".type").rpartition(".")[2]


def _grid(config: SweepConfig) -> Iterator[dict[str, Scalar]]:
    for combination in itertools.product(*config.grid.values()):
        values = dict(zip(config.grid, combination, strict=True))
        if not any(_matches(values, entry) for entry in config.exclude):
            yield values


def _included(config: SweepConfig) -> Iterator[dict[str, Scalar]]:
    for entry in config.include:
        for combination in itertools.product(*(_listed(given) for given in entry.values())):
            yield dict(zip(entry, combination, strict=True))


def _matches(values: Mapping[str, Scalar], entry: KeyValues) -> bool:
    return all(key in values and values[key] in _listed(given) for key, given in entry.items())


def _listed(given: Scalar | list[Scalar]) -> list[Scalar]:
    return given if isinstance(given, list) else [given]


def _grid_problems(config: SweepConfig) -> Iterator[str]:
    """Yield the problems of the grid itself, before its cells are validated."""
    for key, given in config.grid.items():
        if not given:
            yield f"grid.{key}: holds no value: give at least one, or leave the key out"
        for value, count in Counter(map(repr, given)).items():
            if count > 1:
                yield f"grid.{key}: {value} is given {count} times: give it once"
    for key in {*config.grid, *itertools.chain(*config.include)}:
        if key == "name":
            yield "name: cannot be in the grid, since cells are named by their values: remove it"
    combinations = [
        dict(zip(config.grid, combination, strict=True)) for combination in itertools.product(*config.grid.values())
    ]
    for number, entry in enumerate(config.exclude):
        if not entry or not any(_matches(values, entry) for values in combinations):
            yield f"exclude[{number}] = {entry!r}: no cell of the grid has these values: correct or remove it"


def _validated(
    config: SweepConfig, assignments: Sequence[dict[str, Scalar]], overrides: Sequence[str]
) -> tuple[list[Cell], list[str]]:
    """Return the valid cells and the problems of the others; each problem is reported once, with the cells that have
    it."""
    base = read_yaml(config.base)
    cells: list[Cell] = []
    cells_of: dict[str, list[str]] = {}
    for given in assignments:
        own = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        try:
            settings = parse_config(deepcopy(base), [*overrides, *own, "name=unnamed"], source=config.base)
        except ConfigError as error:
            for problem in error.problems:
                cells_of.setdefault(problem, []).append(_as_text(given))
            continue
        values = {key: _value_at(settings, key) for key in given}
        run = cell_name(config.name, values)
        if not is_name(run):
            cells_of.setdefault(
                f"{run!r} ({len(run)} characters) is no valid name of a run (at most 64): shorten the sweep's name", []
            ).append(_as_text(given))
            continue
        cells.append(Cell(run, values, [*own, f"name={json.dumps(run)}"], settings.model_copy(update={"name": run})))
    problems = [
        f"{problem} ({'every cell' if len(having) == len(assignments) else 'cell ' + _first(having)})"
        for problem, having in cells_of.items()
    ]
    return cells, problems


def _cell_problems(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the problems of cells that have the same name, or compute the same under two names."""
    names: dict[str, Cell] = {}
    computed: dict[str, Cell] = {}
    for cell in cells:
        fixed = cell.config.model_copy(update={"name": "any", "selection": simplest(cell.config.selection)})
        content = fixed.model_dump_json()
        if cell.run in names:
            twice = f"{_as_text(names[cell.run].values)}; {_as_text(cell.values)}"
            yield f"cell {cell.run} is given twice ({twice}): remove one"
        elif (same := computed.get(content)) is not None:
            yield (
                f"cells {same.run} and {cell.run} compute the same (at rho = 1 all selectors select every prompt): "
                f"leave one out, with exclude: [{_braced(cell.values)}]"
            )
        names[cell.run] = cell
        computed.setdefault(content, cell)


def _value_at(settings: BaseModel, key: str) -> Any:
    node: Any = settings
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _slug(value: Scalar) -> str:
    if isinstance(value, float):
        value = repr(value).removesuffix(".0")
    text = "none" if value is None else str(value).lower()
    return re.sub(r"[^a-z0-9.]+", "-", text)


def _first(cells: Sequence[str]) -> str:
    more = f"; and {len(cells) - 2} more" if len(cells) > 2 else ""
    return "; cell ".join(cells[:2]) + more


def _as_text(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _braced(values: Mapping[str, Scalar]) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items() if key != "seed") + "}"
