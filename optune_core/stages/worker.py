"""The child process in which a stage runs: `python -m optune_core.stages.worker STAGE SPEC STORE`.

A stage runs in a child process so that all of its memory, GPU memory included, is free afterwards, and so that a crash
or an out-of-memory kill ends only this stage. A child ends when its parent does. Standard output carries one JSON
object a line: {"progress": [what, done, total]} a few times a second at most, {"committed": stage} for every artifact,
and at the end {"done": true} or {"error": {"type", "message"}}. Everything else goes to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from optune_core.process import preemption
from optune_core.process.die_with_parent import die_with_parent

_sending = threading.Lock()


def main() -> int:
    """Run the stage that the command line names, and return the exit status of the process."""
    stage_name, spec_file, store_url = sys.argv[1:]
    die_with_parent()
    lines = _take_over_stdout()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    from optune_core.errors import OptuneError, Preempted, TransientError
    from optune_core.process.hidden_imports import hide_torch, hide_unused
    from optune_core.stages.registry import find_stage
    from optune_core.storage import ArtifactStore, open_objects

    try:
        preemption.install()
        hide_unused()
        stage = find_stage(stage_name)
        if stage.needs == "tokenizer":
            hide_torch()
        spec = stage.spec.model_validate_json(Path(spec_file).read_text(encoding="utf-8"))
        store = ArtifactStore(
            open_objects(store_url), on_commit=lambda manifest: _send(lines, {"committed": manifest.ref.stage})
        )
        stage.run(store, spec, _reporter(lines))
    except (OptuneError, TransientError) as error:
        _send(lines, {"error": {"type": type(error).__name__, "message": str(error)}})
        return preemption.EXIT_STATUS if isinstance(error, Preempted) else 1
    except Exception as error:
        traceback.print_exc()
        kind, message = _translate(error)
        _send(lines, {"error": {"type": kind, "message": message}})
        return 1
    _send(lines, {"done": True})
    return 0


def _translate(error: Exception) -> tuple[str, str]:
    """Return the type and the message of an error of a library; a known cause is named in the terms of the project."""
    name, text = type(error).__name__, f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "DiskFull",
            f"{error.filename or 'a temporary file'}: no space is left on its disk. Free some and start the run again",
        )
    if name == "OutOfMemoryError":
        return "OutOfMemory", (
            f"the device has too little memory ({error}). Depending on the stage, lower "
            "generation.engine.gpu_memory_utilization or max_num_seqs, reward.batch_size or training.micro_batch_tokens"
        )
    if name in ("EngineDeadError", "EngineGenerateError"):
        return "TransientError", f"vLLM's engine died: {text}"
    return name, text


def _take_over_stdout() -> IO[str]:
    """Keep standard output for the protocol, and send what libraries print to standard error."""
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return lines


def _reporter(lines: IO[str]) -> Any:
    last = 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.3 or done == total:
            last = now
            _send(lines, {"progress": [what, done, total]})

    return report


def _send(lines: IO[str], value: dict[str, Any]) -> None:
    """Send a line to the parent. Of several processes that train together only the first sends progress and `done`."""
    if os.environ.get("RANK", "0") == "0" or value.keys() & {"error", "committed"}:
        with _sending:
            lines.write(json.dumps(value) + "\n")
            lines.flush()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of engines would delay a normal exit; all results are committed
