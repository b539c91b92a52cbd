"""The fixed prompt set of a run: rows are normalised, identified by their content, and drawn and tokenised once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

from pydantic import Field

from optune_core.data.sources import Source
from optune_core.errors import DataError
from optune_core.parts.section import Section
from optune_core.storage.canonical import digest

Message = dict[str, str]
"""A turn of a chat: `role` and `content`."""


class PairColumns(Section):
    """Columns of a fixed preference pair a prompt. They hold texts, or chat messages that end with the assistant's."""

    chosen: str = "chosen"
    """Column of the chosen response."""
    rejected: str = "rejected"
    """Column of the rejected response."""


class Prompts(Section):
    """The section `prompts`: the prompts that a run trains on and those that it holds out."""

    source: Source
    """Data set that holds the prompts."""
    column: str = "prompt"
    """Column of the prompts. It holds texts, or chat messages whose last turn is the user's."""
    pairs: PairColumns | None = None
    """Columns of a preference pair a prompt, which form the replay set of offline DPO. Default: the source has none."""
    sample: int | None = Field(default=None, ge=1)
    """Number of prompts to train on, drawn once with the run's seed (paper: 48k). Default: all that are not held
    out."""
    held_out: int = Field(default=0, ge=0)
    """Number of prompts that are drawn for scoring policies and never trained on."""
    max_tokens: int = Field(default=512, ge=1)
    """Largest number of tokens in a prompt, chat template included (paper: 512)."""
    too_long: Literal["drop", "error"] = "drop"
    """Treatment of longer prompts: `drop` leaves them out and counts them, `error` stops."""


@dataclass(frozen=True)
class Prompt:
    """A normalised prompt, with its fixed pair if there is one."""

    prompt_id: str
    """Digest of the messages, 32 hexadecimal digits."""
    messages: list[Message]
    """Chat messages that end with the user's turn."""
    chosen: str | None = None
    """Text of the chosen response with `prompts.pairs`, otherwise None."""
    rejected: str | None = None
    """Text of the rejected response with `prompts.pairs`, otherwise None."""

    @property
    def text(self) -> str:
        """The prompt for people and reward functions: the user's message, after earlier turns if there are any."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def as_messages(value: Any) -> list[Message] | str:
    """Return a value of the prompt column as chat messages that end with the user's turn, or why there are none.

    Args:
        value: a string, or a list of {role, content}, whose turns after the last one of the user are cut off. A list of
            strings, as in LIMA, holds turns of the user and the assistant alternately.

    Returns:
        Messages, or a reason: `empty`, `no_user_turn` or `malformed`.
    """
    if value is None:
        return "empty"
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value.strip() else "empty"
    if not isinstance(value, list):
        return "malformed"
    if value and all(isinstance(turn, str) for turn in value):
        roles = cycle(("user", "assistant"))
        value = [{"role": role, "content": text} for role, text in zip(roles, value, strict=False)]
    messages: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(part), str) for part in ("role", "content")):
            return "malformed"
        messages.append({"role": turn["role"], "content": turn["content"]})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        return "no_user_turn"
    return messages if messages[-1]["content"].strip() else "empty"


def last_assistant_text(value: Any) -> str | None:
    """Return the text of a response that is given as text or as messages; None: there is none."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        return last_assistant_text(value[-1].get("content"))
    return None


def normalise(rows: Iterable[dict[str, Any]], config: Prompts, drops: Counter[str]) -> Iterator[Prompt]:
    """Yield the prompts of the rows, each content once; rows that are left out are counted in `drops` by reason."""
    seen: set[str] = set()
    for row in rows:
        messages = as_messages(row[config.column])
        if isinstance(messages, str):
            drops[messages] += 1
            continue
        prompt_id = digest(messages)[:32]
        if prompt_id in seen:
            drops["duplicate"] += 1
            continue
        chosen = rejected = None
        if config.pairs is not None:
            chosen = last_assistant_text(row[config.pairs.chosen])
            rejected = last_assistant_text(row[config.pairs.rejected])
            if chosen is None or rejected is None:
                drops["no_pair"] += 1
                continue
        seen.add(prompt_id)
        yield Prompt(prompt_id, messages, chosen, rejected)


def draw(
    prompts: list[Prompt],
    token_ids: Callable[[list[Message]], list[int]],
    config: Prompts,
    seed: int,
    drops: Counter[str],
) -> tuple[list[tuple[Prompt, list[int]]], list[tuple[Prompt, list[int]]]]:
    """Draw the training and the held-out prompts, in an order that depends only on the seed and their content.

    Prompts are tokenised in this order until enough fit, so most of a large source is never tokenised.

    Args:
        prompts: prompts as `normalise` yields them.
        token_ids: function from messages to token ids, with the chat template and the generation prompt.
        config: section of which `sample`, `held_out`, `max_tokens` and `too_long` are read.
        seed: the run's seed.
        drops: counter to which prompts that are too long are added, as `too_long`.

    Returns:
        (training, held out), each prompt with its token ids.

    Raises:
        DataError: there are too few prompts for `held_out` and `sample`, or one is too long and `too_long` is `error`.
    """
    ordered = sorted(prompts, key=lambda p: hashlib.sha256(f"{seed}/prompts/{p.prompt_id}".encode()).digest())
    wanted = len(ordered) if config.sample is None else config.held_out + config.sample
    fitting: list[tuple[Prompt, list[int]]] = []
    for prompt in ordered:
        if len(fitting) == wanted:
            break
        ids = token_ids(prompt.messages)
        if len(ids) <= config.max_tokens:
            fitting.append((prompt, ids))
        elif config.too_long == "drop":
            drops["too_long"] += 1
        else:
            raise DataError(
                f"prompt {prompt.prompt_id} has {len(ids)} tokens, more than prompts.max_tokens={config.max_tokens}: "
                "raise prompts.max_tokens, or leave such prompts out with prompts.too_long=drop"
            )
    least = config.held_out + (config.sample or 1)
    if len(fitting) < least:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items())) or "none left out"
        raise DataError(
            f"there are {len(fitting)} usable prompts ({left_out}), but prompts.held_out={config.held_out} + "
            f"prompts.sample={config.sample or 'at least 1'} need {least}: add data, or lower one of them"
        )
    return fitting[config.held_out :], fitting[: config.held_out]
