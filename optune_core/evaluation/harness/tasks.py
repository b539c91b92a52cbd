"""Stage `benchmark`: tasks of lm-evaluation-harness on a policy, an artifact each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from optune_core.evaluation.harness.library import harness_version, include_identity, load_tasks, open_model, run_task
from optune_core.evaluation.harness.section import HarnessTask
from optune_core.generation.engine import Engine
from optune_core.generation.registry import ENGINES
from optune_core.process.devices import Replicas
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
RESULTS, SAMPLES = "results.json", "samples.jsonl"


class Spec(BaseModel):
    policy: Ref
    tasks: list[HarnessTask]
    include: str | None
    engine: Annotated[Engine, ENGINES]
    max_length: int | None
    limit: int | None
    chat_template: bool
    seed: int


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return one work a task. Its key holds no metric, since an artifact has all of them.

    Raises:
        OptuneError: the harness is not installed, or there is no folder `include`.
    """
    common = spec.model_dump(mode="json", include={"max_length", "limit", "chat_template", "seed"})
    common |= {
        "engine": spec.engine.identity(),
        "harness": harness_version(),
        "include": include_identity(spec.include),
    }
    return [
        Work(
            "benchmark",
            VERSION,
            common | {"task": task.task, "num_fewshot": task.num_fewshot},
            {"policy": spec.policy},
        )
        for task in spec.tasks
    ]


def replicas(spec: Spec) -> Replicas:
    """Return how many engines run side by side, each with tasks of its own."""
    return spec.engine.side_by_side("engine")


def share(spec: Spec, numbers: list[int]) -> Spec:
    """Return the spec of one of several engines: the works with these numbers."""
    return spec.model_copy(update={"tasks": [spec.tasks[number] for number in numbers]})


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Run the tasks that are missing; each is committed when it is done.

    Raises:
        ConfigError, DataError: as `load_tasks`, before a model is loaded.
    """
    missing = [
        (work, task) for work, task in zip(works(store, spec), spec.tasks, strict=True) if store.find(work) is None
    ]
    progress("load tasks", 0, 0)
    loaded = load_tasks([task for _, task in missing], spec.include)
    progress("start engine", 0, 0)
    began = time.monotonic()
    model = open_model(spec.engine, spec.max_length, store.fetch(spec.policy, "model/*") / "model")
    engine_start = time.monotonic() - began
    for number, ((work, task), definition) in enumerate(zip(missing, loaded, strict=True)):
        reach("benchmark.task")
        progress(f"run {task.task}", number, len(missing))
        began = time.monotonic()
        results, samples = run_task(
            definition, model, spec.engine, limit=spec.limit, chat_template=spec.chat_template, seed=spec.seed
        )
        timing = {"seconds": time.monotonic() - began, "engine_start_seconds": engine_start, "ended_at": time.time()}
        engine_start = 0.0
        with store.scratch() as scratch:
            _write(scratch / RESULTS, [json.dumps(results, sort_keys=True, indent=2, default=_plain)])
            _write(scratch / SAMPLES, [json.dumps(row, sort_keys=True, default=_plain) for row in samples])
            metrics = {name: results[name] for name in ("task", "metrics", "questions", "version")}
            store.commit(work, scratch, metrics=metrics, timing=timing)
    progress("run tasks", len(missing), len(missing))


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return a value that JSON lacks, the same in every process: numpy's numbers as numbers, functions by name,
    everything else as text."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return value.item() if hasattr(value, "item") else str(value)


STAGE = Stage("benchmark", Spec, works, run, replicas=replicas, share=share)
