"""Stage `given-responses`: a baseline's responses from a file, one for each prompt of a set, in the set's order."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.prompts import as_messages, last_assistant_text
from optune_core.data.schemas import ANSWERS, PROMPTS, only, read_table, write_table
from optune_core.data.shards import RESPONSES_FILE
from optune_core.data.sources import describe, read_source, require_columns, source_identity
from optune_core.errors import DataError
from optune_core.evaluation.win_score.sections import ResponsesBaseline
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work
from optune_core.storage.canonical import digest

VERSION = 1


class Spec(BaseModel):
    baseline: ResponsesBaseline
    prompts: Ref
    """The artifact that holds the prompts."""
    file: str


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work.

    Raises:
        DataError: the source cannot be read.
    """
    params = spec.baseline.model_dump(mode="json", exclude={"source"}) | {"file": spec.file}
    params |= {"source": source_identity(spec.baseline.source)}
    return [Work("given-responses", VERSION, params, {"prompts": spec.prompts})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Write the response to each prompt.

    Raises:
        DataError: a column is missing, a prompt has no response, or two that differ.
    """
    (work,) = works(store, spec)
    given = _responses(spec.baseline)
    wanted = only(PROMPTS, "prompt_id", "prompt", "messages")
    prompts = read_table(store.fetch(spec.prompts) / spec.file, wanted).to_pylist()
    missing = [prompt["prompt"] for prompt in prompts if prompt["prompt_id"] not in given]
    if missing:
        raise DataError(
            f"{describe(spec.baseline.source)} has no response for {len(missing)} of {len(prompts)} prompts, the first "
            f"being {missing[0][:120]!r}: a baseline answers every prompt, whose text is compared to the letter. Add "
            "them, or take the prompts from the same file (prompts.type=drawn)"
        )
    rows = [prompt | {"sample": 0, "response": given[prompt["prompt_id"]]} for prompt in prompts]
    with store.scratch() as scratch:
        write_table(pa.Table.from_pylist(rows, schema=ANSWERS), ANSWERS, scratch / RESPONSES_FILE)
        store.commit(work, scratch, metrics={"responses": len(rows)})


def _responses(baseline: ResponsesBaseline) -> dict[str, str]:
    """Return the response to each prompt, by the prompt's id. Rows without a prompt or a response give none."""
    table = read_source(baseline.source)
    columns = [baseline.prompt, baseline.response]
    require_columns(table, columns, baseline.source)
    given: dict[str, str] = {}
    for row in table.select(columns).to_pylist():
        messages, response = as_messages(row[baseline.prompt]), last_assistant_text(row[baseline.response])
        if isinstance(messages, str) or response is None:
            continue
        if given.setdefault(digest(messages)[:32], response) != response:
            raise DataError(
                f"{describe(baseline.source)} has two responses to the prompt {messages[-1]['content'][:120]!r}: "
                "keep one of them"
            )
    return given


STAGE = Stage("given-responses", Spec, works, run, in_process=True)
