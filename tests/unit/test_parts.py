"""Parts of a configuration: found by `type`, described by themselves, refused with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import numpy as np
import pytest
from pydantic import TypeAdapter

from optune_core.config.loading import validate
from optune_core.errors import ConfigError
from optune_core.generation.registry import ENGINES
from optune_core.losses.registry import LOSSES
from optune_core.parts.registry import Registry
from optune_core.parts.section import Section
from optune_core.process.devices import Replicas
from optune_core.rewards.registry import REWARDS
from optune_core.selection.registry import SELECTORS
from optune_core.selection.selector import Selector

REGISTRIES: list[Registry[Any]] = [SELECTORS, LOSSES, REWARDS, ENGINES]
REQUIRED: dict[str, dict[str, Any]] = {
    "wdpo": {"beta1": 0.1, "beta2": 1.0},
    "hypo": {"beta1": 0.1, "kl_coefficient": 0.1},
    "classifier": {"model": "m"},
    "function": {"function": "tests.rewards:vowels"},
    "trained": {"model": "m", "pairs": {"type": "labelled", "function": "tests.rewards:vowels"}},
}
PARTS = [(registry, name) for registry in REGISTRIES for name in registry.paths]

USER_CODE = """
from typing import Literal

import numpy as np

from optune_core.selection.selector import RankingSelector, Values


class Longest(RankingSelector):
    columns = ("chosen_reward",)

    def rank(self, replay) -> Values:
        return np.zeros(replay.num_rows)


class Unfinished(RankingSelector):
    pass


unrelated = 3
"""


class Settings(Section):
    selection: Annotated[Selector, SELECTORS]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `users_selectors` in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_selectors.py").write_text(USER_CODE)
    yield tmp_path / "users_selectors.py"
    sys.modules.pop("users_selectors", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def part(registry: Registry[Any], name: str) -> Any:
    return registry.parse({"type": name, **REQUIRED.get(name, {})})


@pytest.mark.parametrize(("registry", "name"), PARTS)
def test_every_registered_part_is_found_by_its_type_and_survives_json(registry: Registry[Any], name: str) -> None:
    made = part(registry, name)
    assert isinstance(made, registry.base)
    assert made.type == name == type(made).model_fields["type"].default
    assert registry.parse(made.model_dump(mode="json")) == made


@pytest.mark.parametrize("name", SELECTORS.paths)
def test_a_selector_says_how_much_it_regenerates(name: str) -> None:
    selector = part(SELECTORS, name)
    assert selector.label
    assert selector.regenerates == (selector.share > 0) == (name != "none")


@pytest.mark.parametrize("name", LOSSES.paths)
def test_a_loss_describes_its_parameters_and_weights(name: str) -> None:
    loss = part(LOSSES, name)
    assert set(loss.tempers) <= set(type(loss).model_fields)
    assert all(f"{getattr(loss, field):g}" in loss.description for field in loss.tempers)
    weights = loss.pair_weights(np.array([0.0, 1.0]))
    assert (weights is None) == (name != "wdpo")


@pytest.mark.parametrize("name", REWARDS.paths)
def test_a_reward_says_whether_it_uses_a_model(name: str) -> None:
    reward = part(REWARDS, name)
    assert (reward.model_role is None) == (name == "function") == (reward.side_by_side() is None)
    assert reward.family == ("function" if name == "function" else "model")


@pytest.mark.parametrize("name", ENGINES.paths)
def test_an_engine_says_how_many_devices_and_sequences_it_takes(name: str) -> None:
    engine = part(ENGINES, name)
    assert engine.side_by_side("engine") == Replicas("engine", None, engine.devices)
    assert engine.sequences > 1
    assert "replicas" not in engine.identity()


def test_a_class_of_a_users_package_is_a_part_whose_key_changes_with_its_source(user_module: Path) -> None:
    settings = validate(Settings, {"selection": {"type": "users_selectors:Longest", "rho": 0.25}}, [], source="test")
    assert settings.selection.share == 0.25
    before = settings.selection.identity()
    assert before.keys() == {"type", "rho", "source"}
    user_module.write_text(USER_CODE + "# edited")
    assert settings.selection.identity() == before | {"source": settings.selection.identity()["source"]} != before


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"type": "users_selectors:Longest", "beta": 1}, "selection.beta: unknown key"),
        ({"type": "users_selectors:Unfinished"}, "define rank in its class"),
        ({"type": "users_selectors:unrelated"}, "derive its class from Selector"),
        ({"type": "users_selectors:Absent"}, "cannot be imported"),
        ({"type": "absent_module:Longest"}, "cannot be imported"),
        ({"type": "longest"}, "use optune, random, all"),
        ({"type": 3}, "selection.type: required: optune, random"),
    ],
)
def test_a_part_that_cannot_be_used_is_refused_with_its_place(
    user_module: Path, selection: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Settings, {"selection": selection}, [], source="test")
    assert message in str(caught.value)


def test_a_type_that_is_overridden_keeps_the_fields_that_both_have() -> None:
    data = {"selection": {"type": "optune", "rho": 0.3}}
    assert validate(Settings, {**data}, ["selection.type=random"], source="test").selection.share == 0.3
    data = {"selection": {"type": "optune", "rho": 0.3}}
    assert validate(Settings, data, ["selection.type=all"], source="test").selection.share == 1.0
    data = {"selection": {"type": "optune", "rho": 0.3}}
    with pytest.raises(ConfigError, match=r"selection\.rho: unknown key"):
        validate(Settings, data, ["selection.rho=0.5", "selection.type=all"], source="test")


@pytest.mark.parametrize(("registry", "name"), PARTS, ids=[name for _, name in PARTS])
def test_json_schema_by_which_prefect_checks_parameters_allows_the_fields_of_each_part(
    registry: Registry[Any], name: str
) -> None:
    schema = TypeAdapter(Annotated[registry.base, registry]).json_schema()
    part = registry.parse({"type": name} | REQUIRED.get(name, {}))
    jsonschema.validate(part.model_dump(mode="json"), schema)
