"""The run's fixed prompt set, made from rows: normalised, identified by content, drawn once, tokenised once."""

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


class PairColumns(Section):
    """Columns of a fixed preference pair per prompt: text, or an assistant message list."""

    chosen: str = "chosen"
    """Column of the chosen responses."""
    rejected: str = "rejected"
    """Column of the rejected responses."""


class Prompts(Section):
    """The section `prompts`: which prompts a run has, and how many it keeps for evaluation."""

    source: Source
    """Where the rows are read from."""
    column: str = "prompt"
    """A string column, or chat messages whose last turn is the user's."""
    pairs: PairColumns | None = None
    """With it the source also holds one preference pair a prompt: the replay set of offline DPO."""
    sample: int | None = Field(default=None, ge=1)
    """Prompts to train on, drawn once with the run's seed (paper: 48k). Default: all that remain."""
    held_out: int = Field(default=0, ge=0)
    """Prompts drawn for evaluation only, disjoint from the others."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt in tokens, chat template included (paper: 512)."""
    too_long: Literal["drop", "error"] = "drop"
    """The fate of a longer prompt: `drop` leaves it out and counts it, `error` stops."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as chat messages, with its fixed pair where `prompts.pairs` is configured."""

    prompt_id: str
    """Digest of the messages, 32 hex digits."""
    messages: list[Message]
    chosen: str | None = None
    """Text of the fixed pair's chosen response; None without `prompts.pairs`."""
    rejected: str | None = None
    """Text of the fixed pair's rejected response; None without `prompts.pairs`."""

    @property
    def text(self) -> str:
        """Text for people and reward functions: the user's message, after the earlier turns where there are any."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def as_messages(value: Any) -> list[Message] | str:
    """Read a cell of the prompt column as chat messages that end with a user's turn.

    Args:
        value: a string; a list of {role, content}, of which trailing turns of other roles are cut off; or a list of
            strings (LIMA's format) with the turns of user and assistant by turns.

    Returns:
        The messages, or the reason why the cell is no prompt: `empty`, `no_user_turn`, `malformed`.
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
    """Return the text of a response that is given as text or as messages, or None if there is none."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        return last_assistant_text(value[-1].get("content"))
    return None


def normalise(rows: Iterable[dict[str, Any]], config: Prompts, drops: Counter[str]) -> Iterator[Prompt]:
    """Turn rows into prompts, each content once.

    Args:
        rows: rows of the data set, as dictionaries.
        config: `column` and `pairs`, the columns to read.
        drops: counts the rows that are left out, by reason; added to here.
    """
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
    """Draw the held-out and the training prompts, in an order that only the seed and the prompts' content decide.

    Prompts are tokenised in that order until enough fit, so a large source is not tokenised completely.

    Args:
        prompts: prompts of `normalise`.
        token_ids: function from messages to token ids, with the chat template and the generation prompt.
        config: `sample`, `held_out`, `max_tokens` (tokens per prompt), `too_long`.
        seed: the run's seed.
        drops: counts the prompts that are left out, by reason; `too_long` is added to here.

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
