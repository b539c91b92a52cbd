"""The base of all sections of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: its fields are immutable, and unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    HOW: ClassVar[tuple[str, ...]] = ()
    """Fields that determine how a result is computed but not the result: they are not part of keys, and may be changed
    in a run."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine a result, as JSON: all but those of HOW, in nested sections too."""
        fields = self.model_dump(mode="json", exclude=set(self.HOW))
        return fields | {name: getattr(self, name).identity() for name in fields if _is_section(getattr(self, name))}


def free_fields(section: Section, path: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields that may change in a run: those of HOW, in nested sections too."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name in section.HOW:
            yield f"{path}{name}"
        elif isinstance(value, Section):
            yield from free_fields(value, f"{path}{name}.")


def _is_section(value: object) -> bool:
    return isinstance(value, Section)
