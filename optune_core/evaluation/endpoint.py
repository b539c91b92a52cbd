"""An OpenAI-compatible endpoint whose model judges answers: how it is reached, with whose key, and when it is final."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from optune_core.errors import JudgeError
from optune_core.parts.names import EnvironmentVariable
from optune_core.parts.section import Section

if TYPE_CHECKING:
    import openai


class Endpoint(Section):
    """Section that says how a judge's model is reached."""

    base_url: str = "https://api.openai.com/v1"
    """`http://127.0.0.1:8000/v1` for a local `vllm serve`."""
    api_key_env: EnvironmentVariable | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint that asks for none."""
    attempts: int = Field(default=3, ge=1)
    """Number of requests for a judgement until it can be read; after them it counts as malformed."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout_seconds: float = Field(default=120.0, gt=0.0)
    """Longest time of one request."""
    retries: int = Field(default=8, ge=0)
    """Number of times that a request that met 429, a 5xx or a time-out is sent again, with growing pauses."""

    HOW: ClassVar[tuple[str, ...]] = ("concurrency", "timeout_seconds", "retries")


def api_key(endpoint: Endpoint, section: str) -> str | None:
    """Return the key from the environment variable that the configuration names; None where it names none.

    Args:
        section: the endpoint's place in the configuration, for messages.

    Raises:
        JudgeError: the variable is not set.
    """
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        raise JudgeError(
            f"{section}.api_key_env={endpoint.api_key_env!r}: the environment has no such variable. Put the key of "
            f"{endpoint.base_url} into it, or set {section}.api_key_env=null for an endpoint that asks for none"
        )
    return key


def is_final(error: openai.APIStatusError) -> bool:
    """Return whether asking again gives the same: the request itself is wrong, or the account is empty."""
    return error.code == "insufficient_quota" or (error.status_code < 500 and error.status_code not in (408, 409, 429))
