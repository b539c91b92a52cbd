"""Computation of the cells of a sweep, as processes of this machine or as flow runs on a work pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any, Protocol

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment

from optune_core.errors import OptuneError
from optune_core.process.children import no_child
from optune_core.process.die_with_parent import PARENT
from optune_core.secrets import redact
from optune_core.storage import Ledger
from optune_core.storage.lease import is_gone, read_lease
from optune_core.storage.objects import Objects
from optune_core.sweep.grid import Cell
from optune_core.sweep.order import SweepOrder

_POLL_SECONDS = 1.0
_ATTEMPTS = 5
_CRASHED = timedelta(seconds=60)
"""Time that automations have to restart a crashed flow run, before another one replaces it."""


class RunningCell(Protocol):
    """A cell that is being computed."""

    def end(self) -> str | None:
        """Return None while the cell is being computed, afterwards a description of its end."""
        ...

    def send_signal(self, number: int) -> None:
        """Pass on a signal that ends this process."""
        ...

    def wait(self) -> None:
        """Wait until the cell has ended after a signal."""
        ...


def compute(
    objects: Objects, cells: list[Cell], start: Callable[[Cell], RunningCell], at_once: int | None
) -> dict[str, str]:
    """Compute all cells. Cells that share work which is not yet done are not computed at the same time.

    Args:
        objects: the store.
        cells: cells of the sweep.
        start: starts the computation of a cell, or attaches to it.
        at_once: largest number of cells at a time; None: limited by the work pool only.

    Returns:
        Reasons why cells failed, by run.
    """
    logger = get_run_logger()
    order = SweepOrder(cells)
    waiting = [cell for cell in cells if not _is_complete(objects, cell)]
    logger.info("%d of %d cells are complete", len(cells) - len(waiting), len(cells))
    targets = {cell.run: cell for cell in cells}
    past_iteration_0: set[str] = set()
    running: dict[str, RunningCell] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for run, work in list(running.items()):
                if (reason := work.end()) is None:
                    continue
                del running[run]
                if _is_complete(objects, targets[run]):
                    logger.info("cell %s is complete", run)
                elif _is_busy(objects, run):
                    logger.warning("cell %s is being computed by another process: waiting for it", run)
                    waiting.insert(0, targets[run])
                else:
                    failed[run] = _reason(objects, run) or reason
                    logger.error("cell %s: %s", run, failed[run])
            past_iteration_0 |= {
                cell.run
                for cell in cells
                if cell.run not in past_iteration_0 and Ledger(objects, cell.run).iteration(0) is not None
            }
            while (at_once is None or len(running) < at_once) and (
                cell := order.next(waiting, running, past_iteration_0)
            ):
                waiting.remove(cell)
                logger.info("cell %s: started, %d more are waiting", cell.run, len(waiting))
                running[cell.run] = start(cell)
            time.sleep(_POLL_SECONDS if running else 0)
    except BaseException as interruption:  # a signal to this process
        for work in running.values():
            work.send_signal(signal.SIGINT if isinstance(interruption, KeyboardInterrupt) else signal.SIGTERM)
        for work in running.values():
            work.wait()
        raise
    finally:
        no_child.set()
    return failed


class CellHere:
    """A cell computed by `optune run` in a process of this machine, which reports to this flow's Prefect server.

    The process has its own session, so that Ctrl-C reaches it once, through `send_signal`. If this process is killed,
    the cell's process is killed, too.
    """

    def __init__(self, cell: Cell, config: str, overrides: list[str], store: str, at_once: int) -> None:
        """
        Args:
            cell: the cell.
            config: YAML file of the base configuration.
            overrides: overrides of all cells, as `section.key=value`.
            store: URL of the store.
            at_once: number of cells that share this machine's cores. Each gets its share of threads: if each used all
                cores, they would wait for each other's threads.
        """
        arguments = ["run", config, *overrides, *cell.overrides, "--store", store, "--run", cell.run]
        self._run = cell.run
        self._tail: deque[str] = deque(maxlen=20)
        with get_client(sync_client=True) as client:
            environment = os.environ | {
                "PREFECT_API_URL": str(client.api_url),
                PARENT: str(os.getpid()),
            }
        environment.pop("PREFECT__FLOW_RUN_ID", None)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // at_once)))
        no_child.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optune_core.process.die_with_parent", sys.executable, "-c", _COMMAND, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def end(self) -> str | None:
        """See `RunningCell`."""
        if (status := self._process.poll()) is None:
            return None
        self._reader.join(timeout=5)
        return f"its process ended with status {status}\n" + "\n".join(self._tail)

    def send_signal(self, number: int) -> None:
        """See `RunningCell`."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """See `RunningCell`."""
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._tail.append(redact(line.rstrip()))
            print(f"[{self._run}] {self._tail[-1]}", flush=True)


_COMMAND = "from flows.cli import main; main()"


class CellOnPool:
    """A cell computed by a flow run of a deployment of flow `optune`, which the pool's workers take when they can.

    A sweep that was killed and started again finds the flow runs of its cells. If a flow run crashes and no automation
    restarts it, another one replaces it.
    """

    def __init__(self, deployment: str, cell: Cell, config: str, overrides: list[str], store: str) -> None:
        self._deployment = deployment
        self._run = cell.run
        self._store = store
        self._parameters = {
            "config": config,
            "overrides": [*overrides, *cell.overrides],
            "store": store,
            "run": cell.run,
        }
        self._attempt = -1
        self._lost = 0
        while self._launch().is_final():  # this attempt belongs to an earlier start of the sweep
            pass

    def end(self) -> str | None:
        """See `RunningCell`."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._flow_run).state
        except httpx.HTTPError:
            return None  # the server cannot be reached: the next call tries again
        assert state is not None, "a flow run that was created has a state"
        if not state.is_final():
            return None
        if not state.is_crashed():
            return state.message or state.name or "ended"
        if datetime.now(UTC) - state.timestamp < _CRASHED:
            return None
        self._lost += 1
        if self._lost == _ATTEMPTS:
            return f"{_ATTEMPTS} flow runs of {self._deployment!r} in a row were lost; the last: {state.message}"
        self._launch()
        return None

    def send_signal(self, number: int) -> None:
        """Do nothing: the pool continues the flow run."""

    def wait(self) -> None:
        """Do nothing: the next start of the sweep attaches to the flow run."""

    def _launch(self) -> State[Any]:
        self._attempt += 1
        flow_run = run_deployment(
            self._deployment,
            parameters=self._parameters,
            flow_run_name=self._run,
            idempotency_key=f"sweep {self._store} {self._run}/{self._attempt}",
            timeout=0,
            as_subflow=True,
        )
        self._flow_run = flow_run.id
        assert flow_run.state is not None, "a flow run that was created has a state"
        return flow_run.state


def _is_complete(objects: Objects, cell: Cell) -> bool:
    """Return whether the cell's run finished with at least the configured number of iterations."""
    lease = read_lease(objects, cell.run)
    done = lease is not None and lease.state == "finished"
    return done and len(Ledger(objects, cell.run).iterations()) >= cell.config.iterations


def _is_busy(objects: Objects, run: str) -> bool:
    """Return whether another process seems to hold the run's lease. Only a start decides it."""
    lease = read_lease(objects, run)
    return lease is not None and lease.holder is not None and not is_gone(lease)


def _reason(objects: Objects, run: str) -> str | None:
    """Return the run's own record of its failure, or None."""
    lease = read_lease(objects, run)
    return lease.message if lease is not None and lease.state in ("failed", "stopped") else None


def check_failures(sweep: str, failed: dict[str, str], cells: int) -> None:
    """Raise OptuneError with all reasons if cells failed. To be called when all other cells are complete."""
    if failed:
        lines = "\n".join(f"  - {run}: {reason}" for run, reason in failed.items())
        raise OptuneError(
            f"sweep {sweep!r}: {len(failed)} of {cells} cells failed, the others are complete:\n{lines}\n"
            "Fix the cause and give the same command again: it computes only these cells"
        )
