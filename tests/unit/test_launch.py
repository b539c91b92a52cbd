"""Child processes end with their parent, may save before it, and report errors that a user can act on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from optune_core.errors import DiskFull, OptuneError, OutOfMemory, TransientError
from optune_core.process import die_with_parent
from optune_core.process.progress import Progress, silent
from optune_core.selection.everything import All
from optune_core.stages import launch, selection
from optune_core.stages.registry import find_stage
from optune_core.storage import ArtifactStore, Ref, open_objects
from tests.waiting import until

PARENT = """
import os, subprocess, sys, time
from optune_core.process import die_with_parent
command = [sys.executable, "-m", "optune_core.process.die_with_parent", "sleep", "3600"]
child = subprocess.Popen(command, env=os.environ | {die_with_parent.PARENT: str(os.getpid())})
print(child.pid, flush=True)
time.sleep(3600)
"""


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_bound_process_ends_with_its_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        until(lambda: child.name() == "sleep")
        parent.kill()
    until(lambda: ended(child))


def test_a_process_whose_parent_is_already_gone_does_not_start() -> None:
    environment = os.environ | {die_with_parent.PARENT: "1"}
    command = [sys.executable, "-m", "optune_core.process.die_with_parent", "true"]
    assert subprocess.run(command, env=environment).returncode == 1


class FakeStage:
    """A stage whose child process is any program that writes what a real one would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
        self._store = ArtifactStore(open_objects(str(tmp_path / "store")))
        file = tmp_path / "child.py"
        file.write_text(program)
        monkeypatch.setattr(launch, "_launcher", lambda stage, accelerate_config: [sys.executable, str(file)])
        self.lines: list[str] = []
        self.committed = 0

    def run(self, progress: Progress = silent) -> None:
        def committed() -> None:
            self.committed += 1

        spec = selection.Spec(selector=All(), seed=0, iteration=0, previous=Ref("prompts", "0" * 64, "0" * 64))
        launch._run_children(self._store, find_stage("model"), spec, progress, self.lines.append, committed, None)


@pytest.mark.parametrize(
    ("reported", "error", "message"),
    [
        ('{"error": {"type": "DiskFull", "message": "no space in /x"}}', DiskFull, "no space in /x"),
        ('{"error": {"type": "OutOfMemory", "message": "lower it"}}', OutOfMemory, "lower it"),
        ('{"error": {"type": "Preempted", "message": "asked to end"}}', TransientError, "asked to end"),
        ('{"error": {"type": "KeyError", "message": "KeyError: 3"}}', OptuneError, "stage 'model': KeyError: 3"),
    ],
)
def test_an_error_that_a_child_reports_is_raised_in_the_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reported: str, error: type[Exception], message: str
) -> None:
    stage = FakeStage(monkeypatch, tmp_path, f"print({reported!r})\nraise SystemExit(1)")
    with pytest.raises(error, match=message):
        stage.run()


def test_a_killed_child_is_a_transient_error_with_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import os, sys\nprint('on the way', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)"
    with pytest.raises(TransientError, match=r"ended with signal 9\non the way"):
        FakeStage(monkeypatch, tmp_path, program).run()


def test_a_child_that_the_kernel_killed_for_memory_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom_kill 2\n")
    monkeypatch.setattr(launch, "_OOM_KILLS", events)
    program = f"import os\nopen({str(events)!r}, 'w').write('low 0\\noom_kill 3\\n')\nos.kill(os.getpid(), 9)"
    with pytest.raises(OutOfMemory, match="ran out of memory in stage 'model'"):
        FakeStage(monkeypatch, tmp_path, program).run()


def test_commits_are_counted_and_secrets_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_TOKEN", "correct-horse-battery")
    program = (
        "import os, sys\n"
        'print(\'{"committed": "model"}\')\nprint(\'{"committed": "model"}\')\n'
        "print('key', os.environ['SOME_TOKEN'], file=sys.stderr)\nprint('{\"done\": true}')"
    )
    stage = FakeStage(monkeypatch, tmp_path, program)
    stage.run()
    assert stage.committed == 2
    assert stage.lines == ["key ***"]


def test_a_child_may_save_when_its_parent_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The parent's own signal arrives as an exception in its main thread, as Prefect's does."""
    saved = tmp_path / "saved"
    program = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        f"    time.sleep(0.5); open({str(saved)!r}, 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        'print(\'{"progress": ["work", 0, 1]}\', flush=True)\ntime.sleep(3600)'
    )

    class Terminated(BaseException):
        pass

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGUSR1, terminate)
    try:
        stage = FakeStage(monkeypatch, tmp_path, program)
        with pytest.raises(Terminated):
            stage.run(lambda what, done, total: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert saved.exists()
