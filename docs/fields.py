"""The fields of a section of a configuration, and of the sections inside it, as Markdown made from its classes."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from optune_core.parts.registry import Registry
from optune_core.parts.section import Section

_NAMED = {
    "Name": "name (a-z, 0-9, `.`, `_`, `-`)",
    "FunctionPath": "`package.module:function`",
    "EnvironmentVariable": "name of an environment variable",
    "Duration": "duration, such as `30s`, `5m` or `1h`",
}
_SIMPLE = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", type(None): "`null`"}
_PAPER = re.compile(r"\s*\(paper: ([^)]+)\)|Paper: (.+?)\.(?:\s+|$)|\s*Not given by the paper(?:: state it)?\.")


class Fields:
    """What a page says of sections: each class once, links to it afterwards."""

    def __init__(self, prefix: str = "") -> None:
        """Begin; `prefix` of its headings' ids, where a page has several such lists."""
        self._prefix = prefix
        self.places: dict[type[Section], str] = {}
        """Class → where it is described, as the target of a link."""
        self.without_meaning: list[str] = []
        """`Class.field` of the fields that have no docstring."""

    def describe(self, section: type[Section], level: int) -> str:
        """Return the fields of a section, and below them the sections inside it, with headings of this level."""
        return "\n".join(self._section(section, "", level))

    def _section(self, section: type[Section], path: str, level: int) -> Iterator[str]:
        inside: list[tuple[str, str, type[Section]]] = []
        for name, field in section.model_fields.items():
            if name in ("type", "kind"):
                continue
            place = path + name
            for kind, part in _parts(field).items():
                if part not in self.places:
                    self.places[part] = self._id(f"{place} {kind}")
                    inside.append((place, kind, part))
            yield self._field(section, name, field)
        for place, kind, part in inside:
            title = f"`{place}.type: {kind}`" if kind else f"`{place}`"
            yield f"{'#' * level} {title} {{ {self.places[part]} }}\n\n{_docstring(part)}\n"
            yield from self._section(part, f"{place}.", min(level + 1, 4))

    def _id(self, heading: str) -> str:
        return "#" + re.sub(r"[^a-z0-9]+", "-", f"{self._prefix} {heading}".lower()).strip("-")

    def _field(self, section: type[Section], name: str, field: FieldInfo) -> str:
        parts = _parts(field)
        meaning = _meaning(section, name)
        if not meaning and list(parts) == [""]:
            meaning = _docstring(parts[""]).partition("\n\n")[0]
        if not meaning:
            self.without_meaning.append(f"{section.__name__}.{name}")
        notes = [_type(section, name, field, parts), _default(field), *_of_paper(meaning)]
        notes += ["may change in a run"] if name in section.HOW else []
        text = _PAPER.sub("", meaning).strip()
        links = ", ".join(f"[`{kind or name}`]({self.places[part]})" for kind, part in parts.items())
        registry = _registry(field)
        own = f", or [`package.module:Name`](extending.md), a {registry.kind} of your own" if registry else ""
        see = f" Fields: {links}{own}." if links else ""
        lines = textwrap.indent(f"{text}{see}".strip(), "    ").strip()
        return f"**`{name}`** *{'; '.join(notes)}*\n\n:   {lines}\n"


def _of_paper(meaning: str) -> list[str]:
    """Return what the paper says of a field, as its docstring quotes it."""
    found = _PAPER.search(meaning)
    if found is None:
        return []
    return [f"paper: {found[1] or found[2] or 'not given'}"]


def _parts(field: FieldInfo) -> dict[str, type[Section]]:
    """Return the sections that a field may hold: `type` → class; a section without `type` has the key ''."""
    if (registry := _registry(field)) is not None:
        return {name: registry.find(name) for name in registry.paths}
    return {_kind(each): each for each in _leaves(field.annotation) if _is_section(each)}


def _registry(field: FieldInfo) -> Registry[Any] | None:
    return next((each for each in field.metadata if isinstance(each, Registry)), None)


def _kind(section: type[Section]) -> str:
    kind = section.model_fields.get("type")
    return str(get_args(kind.annotation)[0]) if kind is not None else ""


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the classes inside of unions, lists and annotations."""
    if get_origin(annotation) is None or get_origin(annotation) is typing.Literal:
        yield annotation
    else:
        for each in get_args(annotation):
            if not isinstance(each, FieldInfo):
                yield from _leaves(each)


def _type(section: type[Section], name: str, field: FieldInfo, parts: dict[str, type[Section]]) -> str:
    written = str(inspect.get_annotations(_defining(section, name))[name])
    for known, text in _NAMED.items():
        if re.match(rf"{known}\b", written):
            return text
    optional = " or `null`" if type(None) in get_args(field.annotation) else ""
    if parts:
        return ("list of sections" if get_origin(field.annotation) is list else "section") + optional
    return _written(field.annotation).removesuffix(" or `null`") + _limits(field) + optional


def _written(annotation: Any) -> str:
    if get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_written(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of {_written(get_args(annotation)[0])} to {_written(get_args(annotation)[1])}"
    if get_args(annotation):
        return " or ".join(_written(each) for each in get_args(annotation))
    return _SIMPLE[annotation]


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {limit:g}"
        for each in field.metadata
        for name, sign in signs.items()
        if (limit := getattr(each, name, None)) is not None
    ]
    return f" {', '.join(limits)}" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if isinstance(default, Section):
        kind = getattr(default, "type", "")
        return f"default `{{type: {kind}}}`" if kind else "default: its own defaults"
    if isinstance(default, float):
        return f"default `{default:g}`"
    return f"default `{default if isinstance(default, str) else json.dumps(default)}`"


def _docstring(section: type[Section]) -> str:
    return inspect.cleandoc(section.__doc__ or "")


def _defining(section: type[Section], name: str) -> type:
    return next(each for each in section.__mro__ if name in inspect.get_annotations(each))


def _meaning(section: type[Section], name: str) -> str:
    """Return the docstring below a field, of the nearest class that has one."""
    for each in section.__mro__:
        if name in inspect.get_annotations(each) and (found := _attribute_docstrings(each).get(name)):
            return found
    return ""


def _attribute_docstrings(section: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = inspect.cleandoc(value.value)
    return found
