"""Several child processes of a stage: one progress, one failure, one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.process import preemption
from optune_core.process.children import Command, Failure, no_child, run_children
from optune_core.process.progress import Together, silent
from tests.waiting import PATIENCE, until

SAYS = """
import json, os, signal, sys, time
def ready(file):
    open(file, "a").write("x")
def wait_for(file, parts=1):
    while not os.path.exists(file) or os.path.getsize(file) < parts:
        time.sleep(0.02)
def wait_for_end_of(file):
    wait_for(file)
    while os.path.exists(f"/proc/{open(file).read()}/fd/0"):  # of a dead process not yet waited for, nothing is open
        time.sleep(0.02)
def say(**message):
    print(json.dumps(message), flush=True)
def preempted(*_):
    say(error={"type": "Preempted", "message": "asked to end"})
    sys.exit(143)
signal.signal(signal.SIGTERM, preempted)
"""


@pytest.fixture(autouse=True)
def all_end() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before
    assert no_child.is_set()


def python(program: str, **environment: str) -> Command:
    return Command([sys.executable, "-c", SAYS + program], environment)


def run(*programs: str, **options: Any) -> Failure | None:
    arguments: dict[str, Any] = {"progress": silent, "log": lambda line: None, "committed": lambda: None} | options
    return run_children([python(program) for program in programs], **arguments)


def error(kind: str) -> str:
    return f"say(error={{'type': {kind!r}, 'message': 'why'}}); sys.exit(1)"


def when_told(file: str, does: str) -> str:
    return (
        "import threading; told = threading.Event(); signal.signal(signal.SIGTERM, lambda *_: told.set()); "
        f"ready({file!r}); told.wait(); {does}"
    )


DONE = "say(done=True)"
WAITING = 300
WAITS = f"time.sleep({WAITING})"


def test_all_commands_run_with_their_environments_and_their_lines_are_numbered() -> None:
    program = f"print('I am', os.environ['WHO'], file=sys.stderr); say(committed='x'); {DONE}"
    commands = [python(program, WHO=who) for who in ("first", "second", "third")]
    lines: list[str] = []
    commits: list[bool] = []
    failure = run_children(commands, silent, lines.append, lambda: commits.append(no_child.is_set()))
    assert failure is None
    assert sorted(lines) == ["[0] I am first", "[1] I am second", "[2] I am third"]
    assert commits == [False] * 3


def test_no_command_is_no_failure() -> None:
    assert run() is None


def test_no_child_is_set_only_after_the_last_has_ended(tmp_path: Path) -> None:
    seen: list[bool] = []
    pid = str(tmp_path / "pid")
    first = f"open({pid!r}, 'w').write(str(os.getpid())); {DONE}"
    last = f"wait_for_end_of({pid!r}); say(committed='x'); {DONE}"
    assert run(first, last, committed=lambda: seen.append(no_child.is_set())) is None
    assert seen == [False]


def test_the_first_failure_is_reported_and_the_other_children_are_ended() -> None:
    began = time.monotonic()
    failure = run(WAITS, error("DataError"), WAITS)
    assert failure is not None
    assert failure.error == {"type": "DataError", "message": "why"}
    assert time.monotonic() - began < WAITING, "the others came to their own end"


def test_a_killed_child_is_reported_and_not_those_that_were_ended_after_it() -> None:
    failure = run(WAITS, "print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)")
    assert failure is not None
    assert (failure.status, failure.error, failure.tail) == (-9, None, ["last words"])


def test_the_error_of_another_child_is_reported_where_the_first_was_only_preempted(tmp_path: Path) -> None:
    file = str(tmp_path / "ready")
    failure = run(f"wait_for({file!r}); {error('Preempted')}", when_told(file, error("DiskFull")))
    assert failure is not None
    assert failure.error is not None and failure.error["type"] == "DiskFull"
    failure = run(error("Preempted"), WAITS)
    assert failure is not None
    assert failure.error is not None and failure.error["type"] == "Preempted"


def test_a_child_that_does_not_end_in_its_grace_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preemption, "GRACE_SECONDS", 0.0)
    file = str(tmp_path / "ready")
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); ready({file!r}); {WAITS}"
    began = time.monotonic()
    failure = run(deaf, f"wait_for({file!r}); {error('DataError')}")
    assert failure is not None
    assert failure.error is not None and failure.error["type"] == "DataError"
    assert time.monotonic() - began < WAITING, "the others came to their own end"


def test_commits_after_sigterm_are_counted(tmp_path: Path) -> None:
    file = str(tmp_path / "ready")
    saves = when_told(file, f"say(committed='x'); {error('Preempted')}")
    commits: list[int] = []
    run(saves, saves, f"wait_for({file!r}, 2); {error('DataError')}", committed=lambda: commits.append(1))
    assert len(commits) == 2


PARENT = """
import signal, sys
from pathlib import Path
from optune_core.process.children import Command, run_children
def terminate(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, terminate)
folder, *programs = sys.argv[1:]
run_children(
    [Command([sys.executable, "-c", program], {}) for program in programs],
    lambda what, done, total: Path(folder, "working").touch(), print, lambda: None,
)
"""


@pytest.mark.parametrize("whole_group", [True, False])
def test_children_may_save_before_their_parent_ends_on_sigterm(tmp_path: Path, whole_group: bool) -> None:
    """A terminal or a service manager signals the group, Prefect's worker only the parent."""
    saves = SAYS + (
        "def save(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.5)\n"
        "    open(FILE, 'w').close(); preempted()\n"
        "signal.signal(signal.SIGTERM, save); say(progress=['work', 0, 1]); time.sleep(3600)"
    )
    files = [tmp_path / name for name in ("first", "second")]
    programs = [saves.replace("FILE", repr(str(file))) for file in files]
    command = [sys.executable, "-c", PARENT, str(tmp_path), *programs]
    with subprocess.Popen(command, start_new_session=True) as parent:
        until((tmp_path / "working").exists)  # both have reported progress
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        (os.killpg if whole_group else os.kill)(parent.pid, signal.SIGTERM)
        assert parent.wait(PATIENCE) == 143
    assert all(file.exists() for file in files)
    assert not any(child.is_running() for child in children)


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    tied = (
        "from optune_core.process.die_with_parent import die_with_parent; die_with_parent()\n"
        + SAYS
        + "say(progress=['work', 0, 1])\n"
    )
    command = [sys.executable, "-c", PARENT, str(tmp_path), tied + WAITS, tied + WAITS]
    with subprocess.Popen(command, start_new_session=True) as parent:
        until((tmp_path / "working").exists)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        parent.kill()
    until(lambda: not any(child.is_running() for child in children))


def test_progress_is_the_sum_over_the_children_once_all_do_the_same() -> None:
    shown: list[tuple[str, int, int]] = []
    together = Together(lambda *said: shown.append(said), 2)
    together(0, "start", 0, 0)
    assert shown == []
    together(1, "start", 0, 0)
    together(0, "work", 1, 10)
    together(0, "work", 10, 10)
    together(1, "work", 2, 5)
    together(1, "work", 5, 5)
    assert shown == [("start", 0, 0), ("work", 12, 15), ("work", 15, 15)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=30))
def test_progress_has_one_total_and_never_decreases(steps: list[tuple[int, int]]) -> None:
    shown: list[tuple[str, int, int]] = []
    together = Together(lambda *said: shown.append(said), 3)
    done = [0, 0, 0]
    for part, more in steps:
        done[part] = min(10, done[part] + more)
        together(part, "work", done[part], 10)
    assert all(total == 30 for _, _, total in shown)
    assert [each[1] for each in shown] == sorted(each[1] for each in shown)
    if min(done) > 0:
        assert shown[-1] == ("work", sum(done), 30)


def test_output_that_is_no_message_goes_to_the_log() -> None:
    lines: list[str] = []
    assert run(f"print('a library speaks'); {DONE}", f"print({json.dumps('x')}); {DONE}", log=lines.append) is None
    assert sorted(lines) == ["a library speaks", "x"]
