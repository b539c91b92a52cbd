"""The parent's side of a stage: find committed artifacts, start child processes for the others, check the outcome."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from optune_core import errors
from optune_core.errors import OptuneError, OutOfMemory, TransientError
from optune_core.process.children import Command, run_children
from optune_core.process.devices import visible_devices
from optune_core.process.progress import Progress
from optune_core.secrets import redact
from optune_core.stages.registry import find_stage
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Manifest

_WORKER = "optune_core.stages.worker"
_ACCELERATE = "accelerate.commands.launch"
_OOM_KILLS = Path("/sys/fs/cgroup/memory.events")


def find_all(store: ArtifactStore, stage: str, spec: BaseModel) -> list[Manifest] | None:
    """Return the manifests of a stage's artifacts, in the order of its works; None if one is not committed."""
    found = [store.find(work) for work in find_stage(stage).works(store, spec)]
    return None if any(manifest is None for manifest in found) else [m for m in found if m is not None]


def run_stage(
    store: ArtifactStore,
    stage: str,
    spec: BaseModel,
    progress: Progress,
    log: Callable[[str], None],
    *,
    committed: Callable[[], None] = lambda: None,
    accelerate_config: str | None = None,
) -> list[Manifest]:
    """Make those artifacts of a stage that are not committed yet, and return the manifests of all of them.

    The works of a stage with `replicas` are divided over as many child processes as its configuration and the devices
    of this machine allow. When a device runs out of memory, the stage starts again with a smaller spec, if it has one.
    When a signal asks this process to end, it asks its children to end and gives them time to save their work.

    Args:
        store: store of the artifacts.
        stage: name of the stage.
        spec: spec of the stage.
        progress: called with the progress of the stage.
        log: called with each line that the children print on standard error, without secrets.
        committed: called for every artifact that the stage commits.
        accelerate_config: file for `accelerate launch`, for stages that train; None: one process a device.

    Raises:
        OptuneError: the stage failed in a way that it would fail again.
        TransientError: a child was killed, or storage could not be reached.
    """
    found = find_stage(stage)
    if found.in_process:
        found.run(store, spec, progress)
        committed()
    else:
        while True:
            try:
                _run_children(store, found, spec, progress, log, committed, accelerate_config)
                break
            except OutOfMemory as error:
                reduced = found.smaller(spec)
                if reduced is None:
                    raise
                log(f"stage {stage!r}: {error}; trying again with {_changes(spec, reduced)}")
                spec = reduced
    made = find_all(store, stage, spec)
    if made is None:
        raise OptuneError(
            f"stage {stage!r} ended without committing all of its artifacts: this is a defect of the stage"
        )
    return made


def _run_children(
    store: ArtifactStore,
    stage: Stage[Any],
    spec: BaseModel,
    progress: Progress,
    log: Callable[[str], None],
    committed: Callable[[], None],
    accelerate_config: str | None,
) -> None:
    kills = _oom_kills()
    with tempfile.TemporaryDirectory(prefix="optune-") as folder:
        commands = []
        for number, (part, environment) in enumerate(_parts(store, stage, spec)):
            file = Path(folder) / f"spec-{number}.json"
            file.write_text(part.model_dump_json(), encoding="utf-8")
            launcher = _launcher(stage, accelerate_config)
            arguments = [*launcher, stage.name, str(file), store.objects.url]
            commands.append(Command(arguments, environment, launches=_ACCELERATE in launcher))
        failure = run_children(commands, progress, log, committed)
    if failure is None:
        return
    if failure.error is not None:
        raise _as_exception(stage.name, failure.error)
    if failure.status == -9 and _oom_kills() > kills:
        raise OutOfMemory(
            f"the machine ran out of memory in stage {stage.name!r}, and its kernel killed the process. Use a machine "
            "with more memory, or lower generation.engine.cpu_kv_cache_gib, training.micro_batch_tokens or "
            "reward.batch_size"
        )
    reason = f"signal {-failure.status}" if failure.status < 0 else f"exit status {failure.status}"
    raise TransientError(f"the process of stage {stage.name!r} ended with {reason}\n" + "\n".join(failure.tail))


def _parts(store: ArtifactStore, stage: Stage[Any], spec: BaseModel) -> list[tuple[BaseModel, dict[str, str]]]:
    """Return the spec and the environment of each child; the missing works are dealt to the children in turn."""
    replicas = stage.replicas(spec)
    if replicas is None:
        return [(spec, {})]
    missing = [number for number, work in enumerate(stage.works(store, spec)) if store.find(work) is None]
    devices = visible_devices()
    children = min(replicas.number(len(devices)), len(missing))
    return [
        (stage.share(spec, missing[child::children]), replicas.environment(child, devices)) for child in range(children)
    ]


def _oom_kills() -> int:
    """Return how many processes of this control group the kernel killed because memory ran out; 0 if it is unknown."""
    try:
        counts = dict(line.split() for line in _OOM_KILLS.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _changes(before: BaseModel, after: BaseModel) -> str:
    old, new = before.model_dump(), after.model_dump()
    return ", ".join(f"{name}={new[name]}" for name in new if new[name] != old[name])


def _launcher(stage: Stage[Any], accelerate_config: str | None) -> list[str]:
    module = ["-m", _WORKER]
    if stage.launcher == "plain":
        return [sys.executable, *module]
    devices = len(visible_devices())
    if accelerate_config is None and devices <= 1:
        return [sys.executable, *module]
    chosen = ["--config_file", accelerate_config] if accelerate_config else ["--num_processes", str(devices)]
    tied = [sys.executable, "-m", "optune_core.process.die_with_parent", sys.executable]
    return [*tied, "-m", _ACCELERATE, *chosen, *module]


def _as_exception(stage: str, error: dict[str, str]) -> Exception:
    kind = getattr(errors, error["type"], None)
    error["message"] = redact(error["message"])
    if kind is None:
        return OptuneError(f"stage {stage!r}: {error['message']}")
    if kind is errors.ConfigError:  # it is made from a list of problems, which are one text here
        kind = OptuneError
    failure: Exception = kind(error["message"])
    return failure
