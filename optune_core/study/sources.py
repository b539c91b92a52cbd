"""What is compared: one response a prompt, of the policy that a run ended with, or from a file."""

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
    prompt: str
    """For people to read."""
    response: str


@dataclass(frozen=True)
class Source:
    """One side of comparisons."""

    name: str
    identity: dict[str, Any]
    """What determines the answers, besides `parents`."""
    answers: dict[str, Answer]
    """By prompt id, the digest of the prompt's content: the same in every run and file."""
    parents: list[Ref] = field(default_factory=list)


def of_run(store: ArtifactStore, run: str) -> Source:
    """The first response to each held-out prompt of the policy that the run's last committed iteration made.

    Raises:
        StudyError: there is no such run, it has no committed iteration, or that policy answered no held-out prompts.
    """
    ledger = Ledger(store.objects, run)
    if ledger.config() is None:
        raise StudyError(no_such_run(store.objects, run))
    last = len(ledger.iterations())
    if last == 0:
        raise StudyError(f"run {run!r} has committed no iteration: there is no policy of its own to compare yet")
    record = ledger.held_out(last)
    if record is None:
        raise StudyError(
            f"policy {last} of run {run!r} has answered no held-out prompts: continue the run to its end, or start "
            "one with prompts.held_out above 0"
        )
    columns = only(RESPONSES, "prompt_id", "prompt", "sample", "response")
    shards = [Ref.from_json(shard) for shard in record["responses"]]
    rows = read_shards(store, shards, RESPONSES_FILE, columns).to_pylist()
    answers = {row["prompt_id"]: Answer(row["prompt"], row["response"]) for row in rows if row["sample"] == 0}
    return Source(run, {"type": "run", "iteration": last}, answers, shards)


def of_file(name: str, path: str) -> Source:
    """Answers from a JSONL or Parquet file with the columns `prompt` (text or messages) and `response`.

    Raises:
        DataError: the file or a row of it cannot be used, or a prompt has two responses.
    """
    source = FileSource(path=path)
    table = read_source(source)
    require_columns(table, ["prompt", "response"], source)
    answers: dict[str, Answer] = {}
    for number, row in enumerate(table.select(["prompt", "response"]).to_pylist(), start=1):
        messages = as_messages(row["prompt"])
        if isinstance(messages, str):
            raise DataError(f"file {path!r}, row {number}: the prompt is {messages}: give a text or chat messages")
        prompt_id = digest(messages)[:32]
        response = last_assistant_text(row["response"]) or ""
        standing = answers.setdefault(prompt_id, Answer(Prompt(prompt_id, messages).text, response))
        if standing.response != response:
            raise DataError(f"file {path!r}, row {number}: another response to a prompt of before: keep one of them")
    return Source(name, source_identity(source), answers)
