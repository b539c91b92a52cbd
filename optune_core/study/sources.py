"""Sources of responses to compare: the latest policy of a run, or a file, with one response per prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optune_core.data.prompts import Prompt, as_messages, last_assistant_text
from optune_core.data.schemas import RESPONSES, only
from optune_core.data.shards import RESPONSES_FILE, read_shards
from optune_core.data.sources import FileSource, read_source, require_columns, source_identity
from optune_core.errors import DataError, StudyError
from optune_core.storage import ArtifactStore, Ledger, Ref
from optune_core.storage.canonical import digest
from optune_core.storage.ledger import no_such_run


@dataclass(frozen=True)
class Answer:
    """A prompt, as people read it, with the response to it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class AnswerSource:
    """One side of a comparison: a policy's or a file's responses."""

    name: str
    identity: dict[str, Any]
    """Values that determine the answers, besides `parents`."""
    answers: dict[str, Answer]
    """Answers by prompt id. The id is the digest of the prompt's content, and so the same in every run and file."""
    parents: list[Ref] = field(default_factory=list)
    """Artifacts that the answers were read from."""


def of_run(store: ArtifactStore, run: str) -> AnswerSource:
    """Read the responses of the policy of a run's latest committed iteration: the first to each held-out prompt.

    Raises:
        StudyError: the run does not exist, has no committed iteration, or its policy has no held-out responses.
    """
    ledger = Ledger(store.objects, run)
    if ledger.config() is None:
        raise StudyError(no_such_run(store.objects, run))
    last = len(ledger.iterations())
    if last == 0:
        raise StudyError(
            f"run {run!r} has committed no iteration, so it has no policy of its own to compare: wait for its first "
            f"(`optune status {run}` shows it)"
        )
    record = ledger.held_out(last)
    if record is None:
        raise StudyError(
            f"policy {last} of run {run!r} has no responses to held-out prompts: continue the run to its end, or start "
            "one with prompts.held_out above 0"
        )
    columns = only(RESPONSES, "prompt_id", "prompt", "sample", "response")
    shards = record["responses"]
    rows = read_shards(store, shards, RESPONSES_FILE, columns).to_pylist()
    answers = {row["prompt_id"]: Answer(row["prompt"], row["response"]) for row in rows if row["sample"] == 0}
    return AnswerSource(run, {"type": "run", "iteration": last}, answers, shards)


def of_file(name: str, path: str) -> AnswerSource:
    """Read responses from a JSONL or Parquet file with the columns `prompt` (text or messages) and `response`.

    Args:
        name: name of the source in the study.
        path: local path, or any URL that fsspec reads.

    Raises:
        DataError: the file or one of its rows cannot be used, or a prompt has two different responses.
    """
    source = FileSource(path=path)
    table = read_source(source)
    require_columns(table, ["prompt", "response"], source)
    answers: dict[str, Answer] = {}
    for number, row in enumerate(table.select(["prompt", "response"]).to_pylist(), start=1):
        messages = as_messages(row["prompt"])
        if isinstance(messages, str):
            raise DataError(
                f"file {path!r}, row {number}: the prompt is {messages}, but it has to be a text or chat messages"
            )
        prompt_id = digest(messages)[:32]
        response = last_assistant_text(row["response"]) or ""
        first = answers.setdefault(prompt_id, Answer(Prompt(prompt_id, messages).text, response))
        if first.response != response:
            raise DataError(
                f"file {path!r}, row {number}: this prompt has another response in an earlier row: keep one of the two"
            )
    return AnswerSource(name, source_identity(source), answers)
