"""Stage `benchmark`: tasks of lm-evaluation-harness on a policy, an artifact each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from optune_core.evaluation.harness.config import BenchmarkConfig, BenchmarkTask
from optune_core.evaluation.harness.library import harness_version, include_identity, load_tasks, open_model, run_task
from optune_core.process.devices import Replicas
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
RESULTS, SAMPLES = "results.json", "samples.jsonl"


class Spec(BaseModel):
    benchmark: BenchmarkConfig
    policy: Ref
    tasks: list[int] | None = None
    """Which of the benchmark's tasks to make, counted from 0; None: all."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work a task. Raises OptuneError if the harness is not installed, or there is no folder `include`."""
    return [work for work, _ in _works(spec)]


def replicas(spec: Spec) -> Replicas:
    """Engines side by side, each with tasks of its own."""
    return spec.benchmark.engine.side_by_side("engine")


def share(spec: Spec, numbers: list[int]) -> Spec:
    """What one of several engines is asked for: the works with these numbers."""
    return spec.model_copy(update={"tasks": numbers})


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Run the tasks that are missing; each is committed when it is done.

    Raises:
        ConfigError, DataError: as `load_tasks`, before a model is loaded.
    """
    missing = [(work, task) for work, task in _works(spec) if store.find(work) is None]
    progress("load tasks", 0, 0)
    loaded = load_tasks(spec.benchmark, [task for _, task in missing])
    progress("start engine", 0, 0)
    began = time.monotonic()
    model = open_model(spec.benchmark, store.fetch(spec.policy, "model/*") / "model")
    engine_start = time.monotonic() - began
    for number, ((work, task), definition) in enumerate(zip(missing, loaded, strict=True)):
        reach("benchmark.task")
        progress(f"run {task.task}", number, len(missing))
        began = time.monotonic()
        results, samples = run_task(spec.benchmark, definition, model)
        timing = {"seconds": time.monotonic() - began, "engine_start_seconds": engine_start, "ended_at": time.time()}
        engine_start = 0.0
        with store.scratch() as scratch:
            _write(scratch / RESULTS, [json.dumps(results, sort_keys=True, indent=2, default=_plain)])
            _write(scratch / SAMPLES, [json.dumps(row, sort_keys=True, default=_plain) for row in samples])
            metrics = {name: results[name] for name in ("task", "metrics", "questions", "version")}
            store.commit(work, scratch, metrics=metrics, timing=timing)
    progress("run tasks", len(missing), len(missing))


def _works(spec: Spec) -> list[tuple[Work, BenchmarkTask]]:
    """A task's work; its key holds no metric, since an artifact has all of them."""
    config = spec.benchmark
    common = config.model_dump(mode="json", include={"max_length", "limit", "chat_template", "seed"})
    common |= {
        "engine": config.engine.identity(),
        "harness": harness_version(),
        "include": include_identity(config.include),
    }
    parents = {"policy": spec.policy}
    found = [
        (Work("benchmark", VERSION, common | {"task": task.task, "num_fewshot": task.num_fewshot}, parents), task)
        for task in config.tasks
    ]
    return found if spec.tasks is None else [found[number] for number in spec.tasks]


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _plain(value: Any) -> Any:
    """What JSON does not have, the same in every process: numpy's numbers as numbers, functions by name, all else as
    text."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return value.item() if hasattr(value, "item") else str(value)


STAGE = Stage("benchmark", Spec, works, run, replicas=replicas, share=share)
