"""From rows to the run's fixed prompt set: normalised, identified by content, drawn once, tokenised once."""

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
    prompt_id: str
    messages: list[Message]
    chosen: str | None = None
    """With `prompts.pairs`: the text of the fixed pair."""
    rejected: str | None = None

    @property
    def text(self) -> str:
        """For people and reward functions: the user's words, with the turns before them where there are any."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def as_messages(value: Any) -> list[Message] | str:
    """A cell of the prompt column as chat messages that end with the user's turn, or why it is not one.

    Args:
        value: a string, or a list of {role, content} where trailing assistant turns are cut off; a list of strings
            (LIMA's way) holds the user's and the assistant's turns, one after the other.

    Returns:
        Messages, or a reason: `empty`, `no_user_turn`, `malformed`.
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
    """A response given as text or as messages: its text, or None if there is none."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        return last_assistant_text(value[-1].get("content"))
    return None


def normalise(rows: Iterable[dict[str, Any]], config: Prompts, drops: Counter[str]) -> Iterator[Prompt]:
    """Rows as prompts, each content once. What is left out is counted in `drops` by reason."""
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
    """Draw the held-out and the training prompts, in an order that only (seed, content) decides.

    Prompts are tokenised in that order until enough fit, so a large source is not tokenised whole.

    Args:
        prompts: from `normalise`.
        token_ids: messages → token ids with the chat template and the generation prompt.
        config: `sample`, `held_out`, `max_tokens` (tokens a prompt), `too_long`.
        seed: the run's seed.
        drops: `too_long` is counted here.

    Returns:
        (training, held out), each prompt with its token ids.

    Raises:
        DataError: too few prompts for `held_out` and `sample`, or a too long one with `too_long: error`.
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
                "raise it, or leave such prompts out with prompts.too_long=drop"
            )
    least = config.held_out + (config.sample or 1)
    if len(fitting) < least:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items())) or "none left out"
        raise DataError(
            f"{len(fitting)} usable prompts ({left_out}), but held_out={config.held_out} + "
            f"sample={config.sample or 'at least 1'} need {least}: add data or ask for fewer"
        )
    return fitting[config.held_out :], fitting[: config.held_out]
