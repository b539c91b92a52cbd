"""The parent's side of a stage: find what is committed, start a child for what is not, and check that it delivered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import BaseModel

from optune_core import errors
from optune_core.errors import OptuneError, TransientError
from optune_core.progress import Progress
from optune_core.stages import IN_PROCESS, stage_module
from optune_core.storage import ArtifactStore, Manifest

_KEPT_LINES = 40


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
    accelerate_config: str | None = None,
) -> list[Manifest]:
    """Make the artifacts of a stage that are not committed yet; returns the manifests of all of them.

    Args:
        progress: told how far the stage is.
        log: told what the child prints on standard error, line by line.
        accelerate_config: file for `accelerate launch`, for stages that train.

    Raises:
        OptuneError: the stage failed for a reason that trying again does not mend.
        TransientError: the child was killed, or storage could not be reached.
    """
    if stage in IN_PROCESS:
        stage_module(stage).run(store, spec, progress)
    else:
        _run_child(store.objects.url, stage, spec, progress, log, accelerate_config)
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
    accelerate_config: str | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="optune-") as folder:
        spec_file = Path(folder) / "spec.json"
        spec_file.write_text(spec.model_dump_json(), encoding="utf-8")
        command = [*_launcher(stage, accelerate_config), stage, str(spec_file), store_url]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            tail: deque[str] = deque(maxlen=_KEPT_LINES)
            reader = Thread(target=_forward, args=(child.stderr, log, tail), daemon=True)
            reader.start()
            try:
                last = _follow(child.stdout, progress, log)
                status = child.wait()
            except BaseException:
                child.kill()
                raise
            reader.join(timeout=5)
    if last.get("done"):
        return
    if error := last.get("error"):
        raise _as_exception(stage, error)
    reason = f"signal {-status}" if status < 0 else f"exit status {status}"
    hint = " (the kernel ends processes so when memory runs out)" if status == -9 else ""
    raise TransientError(f"the process of stage {stage!r} ended with {reason}{hint}\n" + "\n".join(tail))


def _launcher(stage: str, accelerate_config: str | None) -> list[str]:
    module = ["-m", "optune_core.worker"]
    if stage != "policy":
        return [sys.executable, *module]
    devices = _gpu_count()
    if accelerate_config is None and devices <= 1:
        return [sys.executable, *module]
    chosen = ["--config_file", accelerate_config] if accelerate_config else ["--num_processes", str(devices)]
    return [sys.executable, "-m", "accelerate.commands.launch", *chosen, *module]


def _gpu_count() -> int:
    """GPUs that a child would see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _follow(lines: Any, progress: Progress, log: Callable[[str], None]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            log(line.rstrip())
            continue
        if "progress" in message:
            what, done, total = message["progress"]
            progress(what, done, total)
        else:
            last = message
    return last


def _forward(lines: Any, log: Callable[[str], None], tail: deque[str]) -> None:
    for line in lines:
        if text := line.rstrip():
            tail.append(text)
            log(text)


def _as_exception(stage: str, error: dict[str, str]) -> Exception:
    kind = getattr(errors, error["type"], None)
    if kind is None:
        return OptuneError(f"stage {stage!r}: {error['message']}")
    if kind is errors.ConfigError:  # is made from problems, which are one text by now
        kind = OptuneError
    failure: Exception = kind(error["message"])
    return failure
