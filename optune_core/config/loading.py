"""From a YAML file and `key=value` overrides to a validated configuration, or to all its problems at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from optune_core.config.schema import OptuneConfig
from optune_core.errors import ConfigError
from optune_core.evaluation.alpaca_eval.config import AlpacaConfig
from optune_core.evaluation.harness.config import BenchmarkConfig
from optune_core.evaluation.win_score.config import EvaluationConfig
from optune_core.secrets import redact, secrets_in

Schema = TypeVar("Schema", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> OptuneConfig:
    """Read and validate a configuration.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value in YAML, applied in order.

    Raises:
        ConfigError: the file cannot be read or parsed, an override is malformed, or fields are invalid;
            all invalid fields are reported together.
    """
    return parse_config(read_yaml(path), overrides, source=str(path))


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read and validate the configuration of a win-score evaluation; as `load_config`."""
    return validate(EvaluationConfig, read_yaml(path), overrides, source=str(path))


def load_benchmark(path: str | Path, overrides: Sequence[str] = ()) -> BenchmarkConfig:
    """Read and validate the configuration of a benchmark; as `load_config`."""
    return validate(BenchmarkConfig, read_yaml(path), overrides, source=str(path))


def load_alpaca(path: str | Path, overrides: Sequence[str] = ()) -> AlpacaConfig:
    """Read and validate the configuration of AlpacaEval 2; as `load_config`."""
    return validate(AlpacaConfig, read_yaml(path), overrides, source=str(path))


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds. Raises ConfigError if it cannot be read or parsed."""
    source = Path(path)
    try:
        return yaml.load(source.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            [f"cannot be read ({error.strerror}): give the path of a YAML file"], source=str(path)
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"is not valid YAML: {error}"], source=str(path)) from error


def parse_config(data: Any, overrides: Sequence[str] = (), *, source: str) -> OptuneConfig:
    """Validate a configuration that was read already.

    Args:
        data: mapping of sections; overrides are applied to it.
        overrides: as for `load_config`.
        source: what to call it in messages.

    Raises:
        ConfigError: as `load_config`; also for a value that holds a secret itself.
    """
    return validate(OptuneConfig, data, overrides, source=source)


def validate(schema: type[Schema], data: Any, overrides: Sequence[str], *, source: str) -> Schema:
    """As `parse_config`, for any schema."""
    if not isinstance(data, dict):
        raise ConfigError([f"holds {type(data).__name__}, not a mapping of sections"], source=source)
    for override in overrides:
        _apply(data, override)
    try:
        config = schema.model_validate(data)
    except ValidationError as error:
        unions = _UNIONS | _UNIONS_OF.get(schema, {})
        raise ConfigError([_render(problem, unions) for problem in error.errors()], source=source) from error
    if found := list(secrets_in(config.model_dump(mode="json"))):
        rule = "holds a secret, and configurations are stored and shown: keep it in an environment variable"
        raise ConfigError([f"{place}: {rule}" for place in found], source=source)
    return config


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError([f"{override!r} is not an override: write section.key=value"], source="command line")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{override!r}: the value is not valid YAML: {error}"], source="command line") from error
    if isinstance(value, str):
        value = _number(value)
    node = data
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError([f"{override!r}: {key!r} holds {child!r}, not a section"], source="command line")
        node = child
    node[keys[-1]] = value


def _number(text: str) -> float | str:
    """YAML 1.1 reads 5e-7 as text; people write learning rates so. (In files pydantic converts it.)"""
    try:
        return float(text)
    except ValueError:
        return text


def _render(problem: Any, unions: Mapping[str, tuple[str, ...]]) -> str:
    # After a discriminated union pydantic adds the chosen tag to the location: keep only what stands in the file.
    parts = [str(part) for part in problem["loc"]]
    written = [part for before, part in zip(["", *parts], parts, strict=False) if part not in unions.get(before, ())]
    location = ".".join(written) or "(whole file)"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return redact(f"{location}: unknown key (value {problem['input']!r}): check its spelling and its section")
    if problem["type"] == "missing":
        return f"{location}: required, but not given"
    if isinstance(problem["input"], dict):
        return f"{location}: {message}"
    return redact(f"{location} = {problem['input']!r}: {message}")


_UNIONS = {
    "source": ("file", "hub"),
    "engine": ("vllm", "transformers"),
    "reward": ("classifier", "function", "trained"),
    "pairs": ("file", "labelled"),
}
"""Fields that hold a union, with the tags that tell its members apart."""

_UNIONS_OF: dict[type[BaseModel], dict[str, tuple[str, ...]]] = {
    EvaluationConfig: {
        "prompts": ("held_out", "drawn"),
        "baseline": ("iteration", "model", "responses"),
        "judge": ("openai", "reward"),
    },
}
"""Those that only one schema has."""
