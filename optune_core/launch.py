"""The parent's side of a stage: find what is committed, start a child for what is not, and check that it delivered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from pydantic import BaseModel

from optune_core import bound, errors, preemption
from optune_core.errors import OptuneError, OutOfMemory, Preempted, TransientError
from optune_core.progress import Progress, silent
from optune_core.secrets import redact
from optune_core.stages import IN_PROCESS, stage_module
from optune_core.storage import ArtifactStore, Manifest

no_child = Event()
"""Set while no stage of this process has a child."""
no_child.set()

_WORKER = "optune_core.worker"
_ACCELERATE = "accelerate.commands.launch"
_KEPT_LINES = 40
_OOM_KILLS = Path("/sys/fs/cgroup/memory.events")


def find_all(store: ArtifactStore, stage: str, spec: BaseModel) -> list[Manifest] | None:
    """The committed artifacts of a stage, or None if one is missing."""
    found = [store.find(work) for work in stage_module(stage).works(store, spec)]
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
    """Make the artifacts of a stage that are not committed yet; returns the manifests of all of them.

    A child that runs out of a device's memory is started again with a smaller spec, where its stage knows one.
    A child of a parent that is told to end is told so too, and given its grace to save what it has.

    Args:
        progress: told how far the stage is.
        log: told what the child prints on standard error, line by line, without secrets.
        committed: called for every artifact that the stage commits.
        accelerate_config: file for `accelerate launch`, for stages that train.

    Raises:
        OptuneError: the stage failed for a reason that trying again does not mend.
        TransientError: the child was killed, or storage could not be reached.
    """
    if stage in IN_PROCESS:
        stage_module(stage).run(store, spec, progress)
        committed()
    else:
        smaller = getattr(stage_module(stage), "smaller", lambda spec: None)
        while True:
            try:
                _run_child(store.objects.url, stage, spec, progress, log, committed, accelerate_config)
                break
            except OutOfMemory as error:
                reduced = smaller(spec)
                if reduced is None:
                    raise
                log(f"stage {stage!r}: {error}; trying again with {_changes(spec, reduced)}")
                spec = reduced
    made = find_all(store, stage, spec)
    if made is None:
        raise OptuneError(f"stage {stage!r} ended without committing all of its artifacts")
    return made


def _run_child(
    store_url: str,
    stage: str,
    spec: BaseModel,
    progress: Progress,
    log: Callable[[str], None],
    committed: Callable[[], None],
    accelerate_config: str | None,
) -> None:
    kills = _oom_kills()
    with tempfile.TemporaryDirectory(prefix="optune-") as folder:
        spec_file = Path(folder) / "spec.json"
        spec_file.write_text(spec.model_dump_json(), encoding="utf-8")
        child = subprocess.Popen(
            [*_launcher(stage, accelerate_config), stage, str(spec_file), store_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | {bound.PARENT: str(os.getpid())},
        )
        assert child.stdout is not None and child.stderr is not None
        no_child.clear()
        tail: deque[str] = deque(maxlen=_KEPT_LINES)
        reader = Thread(target=_forward, args=(child.stderr, log, tail), daemon=True)
        reader.start()
        try:
            last = _follow(child.stdout, progress, log, committed)
            status = child.wait()
        except BaseException:
            _end(child, committed)
            raise
        finally:
            no_child.set()
        reader.join(timeout=5)
    if last.get("done"):
        return
    if error := last.get("error"):
        raise _as_exception(stage, error)
    if status == -9 and _oom_kills() > kills:
        raise OutOfMemory(
            f"the machine ran out of memory in stage {stage!r}, and its kernel ended the process. Give it more, or "
            "lower generation.engine.cpu_kv_cache_gib, training.micro_batch_tokens or reward.batch_size"
        )
    reason = f"signal {-status}" if status < 0 else f"exit status {status}"
    raise TransientError(f"the process of stage {stage!r} ended with {reason}\n" + "\n".join(tail))


def _end(child: subprocess.Popen[str], committed: Callable[[], None]) -> None:
    """Tell a child to end, and see that it does within its grace."""
    for process in _workers(child):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    assert child.stdout is not None
    # Its pipe has to be read on, or it would wait at a full one instead of saving.
    reader = Thread(target=_follow, args=(child.stdout, silent, lambda line: None, committed), daemon=True)
    reader.start()
    try:
        child.wait(preemption.GRACE_SECONDS + 1)
    except BaseException:  # it took too long, or this process is told again
        child.kill()
        child.wait()


def _workers(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of a stage: the child, or what it launched, since a launcher may end without telling those."""
    assert isinstance(child.args, list)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(child.pid)
        return process.children() if _ACCELERATE in child.args else [process]
    return []


def _oom_kills() -> int:
    """Processes of this control group that the kernel ended for want of memory; 0 where it does not tell."""
    try:
        counts = dict(line.split() for line in _OOM_KILLS.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _changes(before: BaseModel, after: BaseModel) -> str:
    old, new = before.model_dump(), after.model_dump()
    return ", ".join(f"{name}={new[name]}" for name in new if new[name] != old[name])


def _launcher(stage: str, accelerate_config: str | None) -> list[str]:
    module = ["-m", _WORKER]
    if stage != "policy":
        return [sys.executable, *module]
    devices = _gpu_count()
    if accelerate_config is None and devices <= 1:
        return [sys.executable, *module]
    chosen = ["--config_file", accelerate_config] if accelerate_config else ["--num_processes", str(devices)]
    tied = [sys.executable, "-m", "optune_core.bound", sys.executable]
    return [*tied, "-m", _ACCELERATE, *chosen, *module]


def _gpu_count() -> int:
    """GPUs that a child would see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _follow(
    lines: Any, progress: Progress, log: Callable[[str], None], committed: Callable[[], None]
) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            log(redact(line.rstrip()))
            continue
        if "progress" in message:
            what, done, total = message["progress"]
            progress(what, done, total)
        elif "committed" in message:
            committed()
        elif not _is_reason(last):
            last = message
    return last


def _is_reason(message: dict[str, Any]) -> bool:
    """Whether it tells why a stage failed. Of processes that train together, others are only told to end after it."""
    return "error" in message and message["error"]["type"] != Preempted.__name__


def _forward(lines: Any, log: Callable[[str], None], tail: deque[str]) -> None:
    for line in lines:
        if text := redact(line.rstrip()):
            tail.append(text)
            log(text)


def _as_exception(stage: str, error: dict[str, str]) -> Exception:
    kind = getattr(errors, error["type"], None)
    error["message"] = redact(error["message"])
    if kind is None:
        return OptuneError(f"stage {stage!r}: {error['message']}")
    if kind is errors.ConfigError:  # is made from problems, which are one text by now
        kind = OptuneError
    failure: Exception = kind(error["message"])
    return failure
