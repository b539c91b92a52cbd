"""What the stages ask of a reward, and reward functions, the simplest kind."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from optune_core.errors import ConfigError
from optune_core.process.hidden_imports import show_all

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class RewardRef(BaseModel):
    """A reward as stages hand it to each other: a classifier in the store, or a function with its source's digest."""

    type: Literal["classifier", "function"]
    model: dict[str, str] | None = None
    """Reference to the classifier's artifact."""
    function: str | None = None
    identity: str | None = None
    """SHA-256 of the source of the function's module."""
    batch_size: int = 16
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Conversation:
    """A response with what it answers."""

    prompt: str
    messages: list[dict[str, str]]
    response: str


class Scorer(Protocol):
    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        """One score each, in order; not finite where the reward failed. `done` is told how many are scored."""
        ...


def open_scorer(reward: RewardRef, model: Path | None) -> Scorer:
    """Make a reward ready.

    Args:
        reward: what to open.
        model: folder of the classifier's artifact; None for a function.
    """
    if reward.type == "function":
        assert reward.function is not None
        return FunctionScorer(reward.function)
    from optune_core.rewards.classifier import ClassifierScorer

    assert model is not None
    return ClassifierScorer(model / "model", batch_size=reward.batch_size, dtype=reward.dtype)


class FunctionScorer:
    """A user's function over texts."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = load_function(path)

    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        scores = self._function([c.prompt for c in conversations], [c.response for c in conversations])
        if len(scores) != len(conversations):
            raise ConfigError(
                [f"{self._path} gave {len(scores)} scores for {len(conversations)} responses: return one each"],
                source="reward function",
            )
        done(len(conversations))
        return [float(score) for score in scores]


def load_function(path: str) -> RewardFunction:
    """Import `package.module:function`.

    Raises:
        ConfigError: there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    _allow_working_directory()
    show_all()
    try:
        function: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"{path!r} cannot be imported: {error}"], source="reward function") from error
    if not callable(function):
        raise ConfigError([f"{path!r} is {type(function).__name__}, not a function"], source="reward function")
    return function  # type: ignore[no-any-return]


def function_identity(path: str) -> str:
    """SHA-256 of the source file of the function's module: an edited function is another reward.

    Raises:
        ConfigError: the module cannot be found.
    """
    module_name = path.partition(":")[0]
    _allow_working_directory()
    try:
        spec = importlib.util.find_spec(module_name)
    except ImportError as error:
        raise ConfigError([f"{path!r} cannot be imported: {error}"], source="reward function") from error
    if spec is None or spec.origin is None:
        raise ConfigError(
            [f"{path!r}: there is no module {module_name!r} with a source file"], source="reward function"
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _allow_working_directory() -> None:
    """Console scripts do not put the working directory on the path, where users keep their functions."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
