"""Load a validated configuration from a YAML file and `key=value` overrides, or report all of its problems together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from optune_core.config.run import OptuneConfig
from optune_core.errors import ConfigError
from optune_core.parts.registry import Registry
from optune_core.secrets import redact, secrets_in

Schema = TypeVar("Schema", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects a key given twice; PyYAML silently keeps the last value."""

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
        ConfigError: the file cannot be read or parsed, an override is malformed, fields are invalid, or a value holds a
            secret. All invalid fields are reported together.
    """
    return parse_config(read_yaml(path), overrides, source=str(path))


def read_yaml(path: str | Path) -> Any:
    """Read and parse a YAML file.

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
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
    """Validate a configuration that was parsed already.

    Args:
        data: mapping of sections; overrides are applied to it in place.
        overrides: as for `load_config`.
        source: name of the configuration for messages, such as its file.

    Raises:
        ConfigError: an override is malformed, fields are invalid, or a value holds a secret.
    """
    return validate(OptuneConfig, data, overrides, source=source)


def validate(schema: type[Schema], data: Any, overrides: Sequence[str], *, source: str) -> Schema:
    """Validate data by any schema; arguments and errors as for `parse_config`.

    Overrides of a `type` are applied before all others. Of the fields in its section, those that the new type also has
    are kept and the others are dropped.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            [f"holds {type(data).__name__}, not a mapping of sections: write `section:` lines"], source=source
        )
    parsed = [_parse_override(override) for override in overrides]
    for override in sorted(parsed, key=lambda override: override.keys[-1] != "type"):
        _apply(schema, data, override)
    try:
        config = schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_render(problem, data) for problem in error.errors()], source=source) from error
    if found := list(secrets_in(config.model_dump(mode="json"))):
        rule = "holds a secret, but configurations are stored and shown: keep it in an environment variable"
        raise ConfigError([f"{place}: {rule}" for place in found], source=source)
    return config


@dataclass(frozen=True)
class _Override:
    text: str
    keys: list[str]
    value: Any


def _parse_override(text: str) -> _Override:
    path, equals, value_text = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError([f"{text!r} is not an override: write section.key=value"], source="command line")
    try:
        value = yaml.load(value_text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{text!r}: the value is not valid YAML: {error}"], source="command line") from error
    return _Override(text, keys, _number(value) if isinstance(value, str) else value)


def _apply(schema: type[BaseModel], data: dict[str, Any], override: _Override) -> None:
    *sections, last = override.keys
    node = data
    for key in sections:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError([f"{override.text!r}: {key!r} holds {child!r}, not a section"], source="command line")
        node = child
    if last == "type" and (registry := _registry(schema, sections)) is not None and isinstance(override.value, str):
        with suppress(ConfigError):  # validation reports an unknown type together with all other problems
            fields = registry.find(override.value).model_fields
            for name in [name for name in node if name not in fields]:
                del node[name]
    node[last] = override.value


def _registry(schema: type[BaseModel], sections: Sequence[str]) -> Registry[Any] | None:
    """Return the registry of the part at this place of the schema; None: there is no part."""
    found: Registry[Any] | None = None
    for name in sections:
        field = schema.model_fields.get(name)
        if field is None:
            return None
        found = next((each for each in field.metadata if isinstance(each, Registry)), None)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return found
        schema = field.annotation
    return found


def _number(text: str) -> float | str:
    """Return a number that YAML 1.1 parsed as text, such as 5e-7. (In files pydantic converts it.)"""
    try:
        return float(text)
    except ValueError:
        return text


def _render(problem: Any, data: Any) -> str:
    is_missing = problem["type"] == "missing"
    location = ".".join(_written(problem["loc"], data, is_missing)) or "(complete file)"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return redact(f"{location}: unknown key (value {problem['input']!r}): check its spelling and its section")
    if is_missing:
        return f"{location}: required, but not given"
    if isinstance(problem["input"], dict):
        return f"{location}: {message}"
    return redact(f"{location} = {problem['input']!r}: {message}")


def _written(location: Sequence[str | int], data: Any, is_missing: bool) -> Iterator[str]:
    """Yield the keys that lead to a problem in the file: without the `type` of a union, which pydantic adds."""
    node = data
    for place, (part, following) in enumerate(zip(location, [*location, None][1:], strict=True), 1):
        # A field may be named as the type is, such as `iteration` of a baseline: then the type comes before a field.
        is_type = isinstance(node, dict) and part == node.get("type") and (part not in node or following in node)
        if is_type and not (is_missing and place == len(location)):
            continue
        yield str(part)
        inside = isinstance(node, dict) or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        node = (node.get(part) if isinstance(node, dict) else node[int(part)]) if inside else None
