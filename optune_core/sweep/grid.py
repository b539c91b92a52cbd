"""A sweep: one base configuration, a small grid on top of it, and so a run (a cell) for each combination.

A cell's name is made of its own values only. So it stays the same when the grid is reordered or gets further values:
a sweep grows by values added to its file, and only the new cells are computed. A further key gives all cells new names,
and so new runs, which find the artifacts of the old ones.
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
Values = dict[str, Scalar | list[Scalar]]
"""`section.key` → a value, or several."""


class SweepConfig(Section):
    """What a sweep's YAML file holds."""

    name: Name
    """Name of the sweep, and the beginning of the names of its runs."""
    base: str
    """The YAML file of an experiment, as `optune run` takes it."""
    grid: dict[str, list[Scalar]] = Field(min_length=1)
    """`section.key` → its values. Every combination is a cell."""
    exclude: list[Values] = Field(default_factory=list)
    """Cells of the grid to leave out: those that have these values. A list stands for any of its values."""
    include: list[Values] = Field(default_factory=list)
    """Cells beside the grid, such as baselines; all other keys are the base's. A list makes a cell a value."""
    evaluation: str | None = None
    """The YAML file of an evaluation, as `optune evaluate` takes it, of every policy of every complete cell. The tables
    and figures show its win scores where it is of the kind `win_score`, else the held-out rewards."""
    parallel: int = Field(default=1, ge=1)
    """Cells at once, as processes of this machine, each of which uses all of its devices. Not read where cells go to a
    work pool, which has its own limit."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    run: str
    """Its name: `optune status RUN` shows it, `optune run --run RUN` continues it by itself."""
    values: dict[str, Scalar]
    """What sets it apart, as validated."""
    overrides: list[str]
    """`section.key=value` on top of the sweep's base."""
    config: OptuneConfig


@dataclass(frozen=True)
class Sweep:
    config: SweepConfig
    cells: list[Cell]
    """In the order of the file."""


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep and validate every cell of it.

    Args:
        path: YAML file of the sweep.
        overrides: `section.key=value` on top of the base configuration, for all cells.

    Raises:
        ConfigError: the file, the base, or a cell is invalid, or a cell is given twice; all problems at once.
    """
    config = validate(SweepConfig, read_yaml(path), [], source=str(path))
    problems = list(_grid_problems(config))
    for override in overrides:
        if (key := override.partition("=")[0]) in config.grid:
            problems.append(f"{override!r}: {key} is in the grid, which decides: change it there")
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
    """Return a cell's name, such as `demo-rho_0.3-selection_optune-seed_0`: the sweep, then each key's last part and
    value, by key, the seed last. The last part of a `type` is the section that it chooses."""
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


def _matches(values: Mapping[str, Scalar], entry: Values) -> bool:
    return all(key in values and values[key] in _listed(given) for key, given in entry.items())


def _listed(given: Scalar | list[Scalar]) -> list[Scalar]:
    return given if isinstance(given, list) else [given]


def _grid_problems(config: SweepConfig) -> Iterator[str]:
    """What can be wrong before any cell is looked at."""
    for key, given in config.grid.items():
        if not given:
            yield f"grid.{key}: holds no value: give at least one, or leave the key out"
        for value, count in Counter(map(repr, given)).items():
            if count > 1:
                yield f"grid.{key}: {value} is given {count} times: each of its cells would be there twice"
    for key in {*config.grid, *itertools.chain(*config.include)}:
        if key == "name":
            yield "name: cannot be in the grid, a cell is named by its values: remove it"
    whole = [
        dict(zip(config.grid, combination, strict=True)) for combination in itertools.product(*config.grid.values())
    ]
    for number, entry in enumerate(config.exclude):
        if not entry or not any(_matches(values, entry) for values in whole):
            yield f"exclude[{number}] = {entry!r}: no cell of the grid has these values: correct or remove it"


def _validated(
    config: SweepConfig, assignments: Sequence[dict[str, Scalar]], overrides: Sequence[str]
) -> tuple[list[Cell], list[str]]:
    """The cells, or what is wrong with them: a problem that all have is said once, else with the cells that have it."""
    base = read_yaml(config.base)
    cells: list[Cell] = []
    having: dict[str, list[str]] = {}
    for given in assignments:
        own = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        try:
            settings = parse_config(deepcopy(base), [*overrides, *own, "name=unnamed"], source=config.base)
        except ConfigError as error:
            for problem in error.problems:
                having.setdefault(problem, []).append(_said(given))
            continue
        values = {key: _value_at(settings, key) for key in given}
        run = cell_name(config.name, values)
        if not is_name(run):
            having.setdefault(
                f"{run!r} ({len(run)} characters) is no valid name of a run (at most 64): shorten the sweep's name", []
            ).append(_said(given))
            continue
        cells.append(Cell(run, values, [*own, f"name={json.dumps(run)}"], settings.model_copy(update={"name": run})))
    problems = [
        f"{problem} ({'every cell' if len(who) == len(assignments) else 'cell ' + _first(who)})"
        for problem, who in having.items()
    ]
    return cells, problems


def _cell_problems(cells: Sequence[Cell]) -> Iterator[str]:
    """Cells that are one and the same, or would be computed twice."""
    names: dict[str, Cell] = {}
    computed: dict[str, Cell] = {}
    for cell in cells:
        fixed = cell.config.model_copy(update={"name": "any", "selection": simplest(cell.config.selection)})
        what = fixed.model_dump_json()
        if cell.run in names:
            yield f"cell {cell.run} is given twice ({_said(names[cell.run].values)}; {_said(cell.values)}): remove one"
        elif (same := computed.get(what)) is not None:
            yield (
                f"cells {same.run} and {cell.run} compute the same (at rho = 1 every selector takes all prompts): "
                f"leave one out, with exclude: [{_braced(cell.values)}]"
            )
        names[cell.run] = cell
        computed.setdefault(what, cell)


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


def _said(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _braced(values: Mapping[str, Scalar]) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items() if key != "seed") + "}"
