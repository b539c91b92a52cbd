"""Parts of a configuration that are chosen by name: by `type`, or by another field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from optune_core.errors import ConfigError
from optune_core.parts.names import is_path
from optune_core.parts.own_code import load_named, source_digest
from optune_core.parts.section import Section


class Part(Section):
    """A section whose `type` names its class: an entry of a registry, or `package.module:Name`."""

    type: str

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine a result, as JSON; for a user's own class also the digest of its source."""
        fields = super().identity()
        if is_path(self.type):
            fields["source"] = source_digest(self.type, "part of a configuration")
        return fields


P = TypeVar("P", bound=Section)


@dataclass(frozen=True)
class Registry(Generic[P]):
    """The classes of one kind of part, each imported when it is chosen.

    A field of type `Annotated[Base, REGISTRY]` takes a part of any class of the registry.
    """

    kind: str
    """Name of the kind for messages, such as `loss`."""
    base: type[P]
    """Base class of all parts of this kind."""
    paths: Mapping[str, str]
    """Name → `module:Name` of the class."""
    key: str = "type"
    """The field that names the class."""
    default: str | None = None
    """The name for a mapping that gives none; None: it has to give one."""

    def find(self, name: str) -> type[P]:
        """Return the class of this name.

        Raises:
            ConfigError: there is no such entry, or the user's class cannot be imported, is not derived from `base` or
                is abstract.
        """
        path = self.paths.get(name)
        if path is not None:
            module, _, attribute = path.partition(":")
            found: Any = getattr(import_module(module), attribute)
        elif is_path(name):
            found = load_named(name, self.kind)
        else:
            raise ConfigError([f"{self.key} {name!r} is no {self.kind}: use {self._known}"])
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ConfigError([f"{self.key} {name!r} is no {self.kind}: derive its class from {self.base.__name__}"])
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            absent = ", ".join(missing)
            raise ConfigError([f"{self.key} {name!r} is an incomplete {self.kind}: define {absent} in its class"])
        return found

    def find_for(self, value: Mapping[str, Any]) -> type[P]:
        """Return the class that a mapping names.

        Raises:
            ConfigError: it names none, or one that is none of this kind.
        """
        if not isinstance(name := value.get(self.key), str):
            raise ConfigError([f"{self.key}: required: {self._known}"])
        return self.find(name)

    @property
    def _known(self) -> str:
        return f"{', '.join(self.paths)}, or package.module:Name of your own"

    def parse(self, value: Any) -> Any:
        """Turn a mapping into an instance of the class that it names; an instance stays as it is.

        Raises:
            ValidationError: fields are invalid; each is reported with its place.
            ValueError: there is no such name.
        """
        if not isinstance(value, Mapping):
            return value
        if not isinstance(name := value.get(self.key, self.default), str):
            missing = PydanticCustomError("name_missing", "required: {known}", {"known": self._known})
            raise ValidationError.from_exception_data(self.kind, [{"type": missing, "loc": (self.key,), "input": {}}])
        try:
            chosen = self.find(name)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from error
        return chosen.model_validate({self.key: name, **value})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of a mapping with any fields, by which Prefect checks the parameters of a deployment.

        The schema of the base class would refuse the fields that only its subclasses have.
        """
        return {"type": "object", "properties": {self.key: {"type": "string"}}, "additionalProperties": True}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.parse,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda part, info: part.model_dump(mode=info.mode), info_arg=True
            ),
        )
