"""The Prefect server, its work pools and their workers, as parts of the local stack."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.local import ports
from deployments.local.processes import Daemon, StackError, private_folder

POOLS: Mapping[str, int | None] = {"cpu-pool": None, "gpu-pool": 1}  # runs at a time; None: any number
_PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def quiet(home: Path) -> dict[str, str]:
    """Settings of every Prefect process: nothing is reported home, nothing is kept outside `home`."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


class Server:
    """The Prefect server with its UI; PREFECT_API_AUTH_STRING (`user:password`), where set, guards both."""

    def __init__(self, folder: Path, home: Path, port: int | None = 4200) -> None:
        self.daemon = Daemon("Prefect server", folder)
        self.home = home
        self._usual_port = port
        self._ports_file = folder / "ports.json"

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{ports.remembered(self._ports_file)['http']}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    def start(self, database_url: str, timeout: float = 180.0) -> None:
        private_folder(self.home)
        if self.daemon.running() is None:
            ports.choose(self._ports_file, {"http": self._usual_port})
        settings = quiet(self.home) | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # In memory, a restarted server forgets who holds a slot, and a waiting parent run crashes.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        if password := os.environ.get("PREFECT_API_AUTH_STRING"):
            settings["PREFECT_SERVER_API_AUTH_STRING"] = password
        port = str(ports.remembered(self._ports_file)["http"])
        command = [*_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port]
        self.daemon.ensure(command, settings, self.answers, timeout)

    def answers(self) -> bool:
        try:
            return self.call("GET", "/health") is True
        except (httpx.HTTPError, StackError):
            return False

    def ensure_pools(self) -> None:
        """Create the work pools, or put their limits right; the first worker fills in the job template."""
        for name, limit in POOLS.items():
            try:
                self.call("POST", "/work_pools/", {"name": name, "type": "process", "concurrency_limit": limit})
            except StackError:  # it exists; or a worker that still runs has made it just now, in an emptied database
                self.call("PATCH", f"/work_pools/{name}", {"concurrency_limit": limit})

    def deployment_names(self) -> set[str]:
        return {str(found["name"]) for found in self.call("POST", "/deployments/filter", {"limit": 200})}

    def ensure_automations(self, file: Path) -> None:
        """Have exactly the automations of a file, of those that this made.

        One that is as it should be is left alone: replaced, it would forget the flow runs that it waits for.
        """
        automations = yaml.safe_load(file.read_text())["automations"]
        wanted = {hashlib.sha256(json.dumps(each).encode()).hexdigest()[:12]: each for each in automations}
        for standing in self.call("POST", "/automations/filter", {}):
            if "optune" not in standing["tags"]:
                continue
            if wanted.keys().isdisjoint(standing["tags"]):
                self.call("DELETE", f"/automations/{standing['id']}")
            for tag in standing["tags"]:
                wanted.pop(tag, None)
        for tag, automation in wanted.items():
            self.call("POST", "/automations/", automation | {"tags": ["optune", tag]})

    def crash_orphans(self, pool: str, worker: str) -> int:
        """Set Crashed the runs that ended unseen with `worker`: as Running they hold the pool's slots.

        For when that worker is known to be down; with another worker on the pool they may be its runs.
        """
        workers = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        if any(other["status"] == "ONLINE" and other["name"] != worker for other in workers):
            return 0
        at_work = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        query = {"flow_runs": at_work, "work_pools": {"name": {"any_": [pool]}}, "limit": 200}
        orphans = self.call("POST", "/flow_runs/filter", query)
        state = {"type": "CRASHED", "name": "Crashed", "message": "Its worker ended with the local stack."}
        for run in orphans:
            self.call("POST", f"/flow_runs/{run['id']}/set_state", {"state": state})
        return len(orphans)

    def last_heard(self, pool: str, worker: str) -> float:
        """When that worker last called, in seconds since 1970; 0 for never."""
        workers = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        times: Iterable[str] = (w["last_heartbeat_time"] for w in workers if w["name"] == worker)
        return max((datetime.fromisoformat(time).timestamp() for time in times), default=0.0)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
        auth = (user, password) if user else None
        with httpx.Client(trust_env=False, timeout=20, auth=auth) as client:
            answer = client.request(method, self.api_url + path, json=body)
        if answer.is_error:
            raise StackError(
                f"the Prefect server answered {answer.status_code} to {method} {path}: {answer.text[:300]}"
            )
        return answer.json() if answer.content else None


class Worker:
    """One worker of a work pool; its flow runs save what they have and end with it."""

    def __init__(self, pool: str, folder: Path) -> None:
        self.pool = pool
        self.name = f"{pool}-worker"
        self.daemon = Daemon(f"worker of {pool}", folder)

    @property
    def command(self) -> list[str]:
        options = ["--pool", self.pool, "--name", self.name, "--type", "process", "--install-policy", "never"]
        return [sys.executable, "-m", "deployments.worker", *options]

    def start(self, server: Server, settings: Mapping[str, str]) -> None:
        """Start it unless it runs with these very settings; does not wait."""
        if not self.daemon.same_as(self.command, settings):
            self.daemon.stop(grace=30)
            server.crash_orphans(self.pool, self.name)
            self.daemon.start(self.command, settings)

    def wait(self, server: Server, timeout: float = 120.0) -> None:
        """Return once the server has heard from this process (not from one before it) in the last 90 s."""

        def heard() -> bool:
            return server.last_heard(self.pool, self.name) > max(self.daemon.started_at(), time.time() - 90)

        self.daemon.wait_until(heard, timeout)
