"""The class `Stage`: a pure function from a spec and artifacts to artifacts, and how its works are divided."""

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
    """Description of a stage. The module of a stage ends with one, `STAGE`; `registry` finds it by its name."""

    name: str
    """Name of the stage in keys and in the store."""
    spec: type[S]
    """Class of its specs: sections of the configuration and references, from which the works follow."""
    works: Callable[[ArtifactStore, S], list[Work]]
    """Function that returns the works of a spec, without heavy imports."""
    run: Callable[[ArtifactStore, S, Progress], None]
    """Function that makes and commits each work that is not committed yet."""
    replicas: Callable[[S], Replicas | None] = _one_process
    """Function that returns how many processes make the works in parallel; None: one process makes all."""
    share: Callable[[S, list[int]], S] = _cannot_be_divided
    """Function that returns the spec of only the works with these numbers, for one of several processes."""
    smaller: Callable[[S], S | None] = _no_smaller_spec
    """Function that returns a spec of the same works that needs less device memory; None: there is none."""
    in_process: bool = False
    """True: the stage runs in the process of the caller, since it only transforms columns and takes seconds."""
    launcher: Literal["plain", "accelerate"] = "plain"
    """`accelerate`: one process a device, which train together; `plain`: one process."""
    needs: Literal["torch", "tokenizer"] = "torch"
    """`tokenizer`: the stage uses only tokenizers of transformers, so torch is not imported."""
