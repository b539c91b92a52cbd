"""What a stage is: a pure function from a spec and artifacts to artifacts, and how its work is divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from optune_core.process.devices import Replicas
from optune_core.process.progress import Progress
from optune_core.storage import ArtifactStore, Work

S = TypeVar("S", bound=BaseModel)


def _one_process(spec: Any) -> Replicas | None:
    return None


def _cannot_be_divided(spec: Any, numbers: list[int]) -> Any:
    raise AssertionError("only a stage with `replicas` is divided")


def _no_smaller_spec(spec: Any) -> Any:
    return None


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A stage. Each module of a stage ends with one, `STAGE`; `registry` finds it by its name."""

    name: str
    """As it is in keys and in the store."""
    spec: type[S]
    """What the stage is asked for: sections of the configuration and references, as JSON."""
    works: Callable[[ArtifactStore, S], list[Work]]
    """The works that it commits, computed without heavy imports."""
    run: Callable[[ArtifactStore, S, Progress], None]
    """Commits each work that is not committed yet."""
    replicas: Callable[[S], Replicas | None] = _one_process
    """Processes that can make its works side by side; None: one process makes all."""
    share: Callable[[S, list[int]], S] = _cannot_be_divided
    """The spec of the works with these numbers alone, for one of several processes."""
    smaller: Callable[[S], S | None] = _no_smaller_spec
    """The same works in less device memory; None: there is no such spec."""
    in_process: bool = False
    """True: it runs in the caller's process, since it is columnar work of a moment."""
    launcher: Literal["plain", "accelerate"] = "plain"
    """`accelerate`: its child is as many processes as there are devices, which train together."""
    needs: Literal["torch", "tokenizer"] = "torch"
    """`tokenizer`: it needs no more of transformers than a tokenizer, so torch is not imported."""
