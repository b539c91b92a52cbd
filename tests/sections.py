"""Configurations for tests of code that only stores and compares them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict

from optune_core.parts.section import Section


class AnyConfig(Section):
    """A configuration with any fields, of which `iterations` may change in a run, as in a real one."""

    model_config = ConfigDict(extra="allow", frozen=True)

    iterations: int = 1

    HOW: ClassVar[tuple[str, ...]] = ("iterations",)
