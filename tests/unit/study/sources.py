"""Sources of the responses that a study compares, and a study of three files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optune_core.storage import ArtifactStore
from optune_core.study.create import create_study
from optune_core.study.sources import Answer, AnswerSource

Row = dict[str, Any]


def source(name: str, **answers: str) -> AnswerSource:
    return AnswerSource(
        name, {}, {prompt: Answer(f"prompt {prompt}", response) for prompt, response in answers.items()}
    )


def file_of(folder: Path, name: str, responses: Sequence[str]) -> tuple[str, str]:
    rows = [{"prompt": f"Question {number}?", "response": response} for number, response in enumerate(responses)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name, str(path)


def study_of_files(store: ArtifactStore, folder: Path, prompts: int = 10, study: str = "table4") -> Row:
    files = [file_of(folder, name, [f"{name} {n}" for n in range(prompts)]) for name in ("ours", "full", "chance")]
    return create_study(store, study, [], files, 50, None)
