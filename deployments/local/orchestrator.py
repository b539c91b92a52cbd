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

POOLS: Mapping[str, int | None] = {"cpu-pool": None, "gpu-pool": 1}
"""Work pools by name, with the number of flow runs at a time; None: any number."""
_PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def quiet(home: Path) -> dict[str, str]:
    """Return the settings of every Prefect process: no telemetry, and no files outside `home`."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


class Server:
    """The Prefect server with its UI. If PREFECT_API_AUTH_STRING (`user:password`) is set, both require it."""

    def __init__(self, folder: Path, home: Path, port: int | None = 4200) -> None:
        self.daemon = Daemon("Prefect server", folder)
        self.home = home
        self._usual_port = port
        self._ports_file = folder / "ports.json"

    @property
    def ui_url(self) -> str:
        """URL of the UI."""
        return f"http://127.0.0.1:{ports.remembered(self._ports_file)['http']}"

    @property
    def api_url(self) -> str:
        """URL of the API."""
        return f"{self.ui_url}/api"

    def start(self, database_url: str, timeout: float = 180.0) -> None:
        """Start the server unless it runs with these settings, and wait up to `timeout` seconds until it answers."""
        private_folder(self.home)
        if self.daemon.running() is None:
            ports.choose(self._ports_file, {"http": self._usual_port})
        settings = quiet(self.home) | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # Kept in memory, they would be lost when the server restarts, and a waiting parent run would crash.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        if password := os.environ.get("PREFECT_API_AUTH_STRING"):
            settings["PREFECT_SERVER_API_AUTH_STRING"] = password
        port = str(ports.remembered(self._ports_file)["http"])
        command = [*_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port]
        self.daemon.ensure(command, settings, self.answers, timeout)

    def answers(self) -> bool:
        """Return whether the server is healthy."""
        try:
            return self.call("GET", "/health") is True
        except (httpx.HTTPError, StackError):
            return False

    def ensure_pools(self) -> None:
        """Create the work pools, or correct their limits. The first worker of a pool fills in its job template."""
        for name, limit in POOLS.items():
            try:
                self.call("POST", "/work_pools/", {"name": name, "type": "process", "concurrency_limit": limit})
            except StackError:  # the pool exists, perhaps because a worker that still runs has just made it
                self.call("PATCH", f"/work_pools/{name}", {"concurrency_limit": limit})

    def deployment_names(self) -> set[str]:
        """Return the names of the deployments that the server knows."""
        return {str(found["name"]) for found in self.call("POST", "/deployments/filter", {"limit": 200})}

    def ensure_automations(self, file: Path) -> None:
        """Create the automations of a file, and delete others that an earlier call created.

        An automation that has not changed is kept: a replaced one would forget the flow runs that it waits for.
        """
        automations = yaml.safe_load(file.read_text())["automations"]
        missing = {hashlib.sha256(json.dumps(each).encode()).hexdigest()[:12]: each for each in automations}
        for existing in self.call("POST", "/automations/filter", {}):
            if "optune" not in existing["tags"]:
                continue
            if missing.keys().isdisjoint(existing["tags"]):
                self.call("DELETE", f"/automations/{existing['id']}")
            for tag in existing["tags"]:
                missing.pop(tag, None)
        for tag, automation in missing.items():
            self.call("POST", "/automations/", automation | {"tags": ["optune", tag]})

    def crash_orphans(self, pool: str, worker: str) -> int:
        """Set to Crashed the flow runs that ended with `worker`, because as Running they hold the pool's slots.

        To be called when the worker is known to be down. If another worker of the pool is online nothing is changed,
        since the flow runs may be that worker's.

        Returns:
            Number of flow runs that were set to Crashed.
        """
        workers = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        if any(other["status"] == "ONLINE" and other["name"] != worker for other in workers):
            return 0
        active = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        query = {"flow_runs": active, "work_pools": {"name": {"any_": [pool]}}, "limit": 200}
        orphans = self.call("POST", "/flow_runs/filter", query)
        state = {"type": "CRASHED", "name": "Crashed", "message": "Its worker ended with the local stack."}
        for run in orphans:
            self.call("POST", f"/flow_runs/{run['id']}/set_state", {"state": state})
        return len(orphans)

    def last_heartbeat(self, pool: str, worker: str) -> float:
        """Return the time of a worker's last heartbeat, Unix time in seconds; 0 if there was none."""
        workers = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        times: Iterable[str] = (w["last_heartbeat_time"] for w in workers if w["name"] == worker)
        return max((datetime.fromisoformat(time).timestamp() for time in times), default=0.0)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the API and return the parsed answer. Raises StackError if the server answers with an error."""
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
    """One worker of a work pool (`deployments.worker`). Its flow runs save their work and end with it."""

    def __init__(self, pool: str, folder: Path) -> None:
        self.pool = pool
        self.name = f"{pool}-worker"
        self.daemon = Daemon(f"worker of {pool}", folder)

    @property
    def command(self) -> list[str]:
        """Command line of the worker."""
        options = ["--pool", self.pool, "--name", self.name, "--type", "process", "--install-policy", "never"]
        return [sys.executable, "-m", "deployments.worker", *options]

    def start(self, server: Server, settings: Mapping[str, str]) -> None:
        """Start the worker unless it runs with exactly these settings. Does not wait."""
        if not self.daemon.same_as(self.command, settings):
            self.daemon.stop(grace=30)
            server.crash_orphans(self.pool, self.name)
            self.daemon.start(self.command, settings)

    def wait(self, server: Server, timeout: float = 120.0) -> None:
        """Wait until the server has a heartbeat of this process, not of an earlier one, from the last 90 s."""

        def is_online() -> bool:
            return server.last_heartbeat(self.pool, self.name) > max(self.daemon.started_at(), time.time() - 90)

        self.daemon.wait_until(is_online, timeout)
