"""`function`: a user's function of texts, for verifiable rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from optune_core.errors import ConfigError
from optune_core.parts.names import FunctionPath
from optune_core.parts.own_code import load_named, source_digest
from optune_core.rewards.reward import Conversation, Reward, Scorer

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
"""(prompts, responses) → one score a response."""

_SOURCE = "reward function"


class FunctionReward(Reward):
    """A function (prompts, responses) → scores of a user's own package."""

    type: Literal["function"] = "function"
    function: FunctionPath
    """Name of the function, as `package.module:function`."""

    @property
    def label(self) -> str:
        return f"function {self.function}"

    def check(self) -> None:
        load_function(self.function)

    def scoring(self) -> dict[str, Any]:
        return self.identity() | {"source": function_digest(self.function)}

    def open(self, model: Path | None) -> Scorer:
        return FunctionScorer(self.function)


class FunctionScorer:
    """Scorer that calls a user's function."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = load_function(path)

    def score(self, conversations: list[Conversation], done: Callable[[int], None]) -> list[float]:
        scores = self._function([c.prompt for c in conversations], [c.response for c in conversations])
        if len(scores) != len(conversations):
            raise ConfigError(
                [f"{self._path} returned {len(scores)} scores for {len(conversations)} responses: return one each"],
                source=_SOURCE,
            )
        done(len(conversations))
        return [float(score) for score in scores]


def load_function(path: str) -> RewardFunction:
    """Import `package.module:function`.

    Raises:
        ConfigError: there is no such module or function, or it cannot be called.
    """
    function: Any = load_named(path, _SOURCE)
    if not callable(function):
        raise ConfigError([f"{path!r} is {type(function).__name__}, not a function: name one"], source=_SOURCE)
    return function  # type: ignore[no-any-return]


def function_digest(path: str) -> str:
    """Return the SHA-256 of the source file of the function's module, so that an edited function is another reward.

    Raises:
        ConfigError: the module cannot be found.
    """
    return source_digest(path, _SOURCE)
