"""The stack as a whole: what starts after what, and what a shell has to know to use it."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from deployments.local.orchestrator import POOLS, Server, Worker, quiet
from deployments.local.postgres import Postgres
from deployments.local.processes import Daemon, StackError, environment, tail, write_private
from deployments.local.seaweedfs import SeaweedFS

REPOSITORY = Path(__file__).resolve().parents[2]
BUCKET = "optune"
UI_PORT, S3_PORT = 4200, 8333
DEPLOYMENTS = "deployments/prefect.yaml"
AUTOMATIONS = REPOSITORY / "deployments/automations.yaml"


class Stack:
    """PostgreSQL, SeaweedFS, a Prefect server and a worker a pool, all kept in `folder`.

    `project` is where the flows are, and what `prefect_file` (its deployments) is relative to. A port that is
    taken, or None, is replaced by a free one.
    """

    def __init__(
        self,
        folder: Path,
        project: Path = REPOSITORY,
        prefect_file: str = DEPLOYMENTS,
        *,
        ui_port: int | None = UI_PORT,
        s3_port: int | None = S3_PORT,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.project = Path(project).resolve()
        self.prefect_file = self.project / prefect_file
        self.env_file = self.folder / "env"
        self.home = self.folder / "prefect"
        self.postgres = Postgres(self.folder / "postgres")
        self.s3 = SeaweedFS(self.folder / "seaweedfs", s3_port=s3_port, bucket=BUCKET)
        self.server = Server(self.folder / "server", self.home, ui_port)
        self.workers = [Worker(pool, self.folder / pool) for pool in POOLS]

    def up(self, say: Callable[[str], None] = print) -> None:
        """Start what is not running and healthy, deploy the flows; may be repeated at any time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            say("PostgreSQL …")
            self.postgres.start()
            say("SeaweedFS …")
            self.s3.start()
            say("Prefect server …")
            self.server.start(self.postgres.url)
            self.server.ensure_pools()
            self.server.ensure_automations(AUTOMATIONS)
            self._write_env()
            say("workers and deployments …")
            for worker in self.workers:
                worker.start(self.server, self.run_settings())
            self._deploy()
            for worker in self.workers:
                worker.wait(self.server)

    def down(self, *, wipe: bool = False, say: Callable[[str], None] = print) -> None:
        """End what `up` started, and nothing else; with `wipe` forget the data too."""
        if not self.folder.exists():
            return say(f"nothing to stop: there is no {self.folder}")
        with self._alone():
            # Asked in turn, clients first: nobody loses the server that it still talks to.
            for worker in self.workers:
                say(f"{worker.daemon.name}: {_ended(worker.daemon.stop(grace=30))}")
            say(f"Prefect server: {_ended(self.server.daemon.stop(grace=8))}")
            say(f"SeaweedFS: {_ended(self.s3.stop())}")
            say(f"PostgreSQL: {_ended(self.postgres.stop())}")
            if wipe:
                self._wipe()

    def status(self) -> dict[str, str]:
        """One line a part: its pid, and whether it answers."""
        healthy: dict[str, Callable[[], bool]] = {
            self.s3.daemon.name: self.s3.answers,
            self.server.daemon.name: self.server.answers,
        }
        lines = {}
        for daemon in self.daemons():
            process = daemon.running()
            if process is None:
                lines[daemon.name] = "stopped"
            else:
                answers = healthy.get(daemon.name, lambda: True)()
                lines[daemon.name] = f"running, pid {process.pid}" + ("" if answers else ", DOES NOT ANSWER")
        return lines

    def daemons(self) -> list[Daemon]:
        clients = [worker.daemon for worker in self.workers]
        return [self.postgres.daemon, self.s3.daemon, self.server.daemon, *clients]

    def run_settings(self) -> dict[str, str]:
        """What a worker, its flow runs and a user's shell need; secrets included, hence the mode of `env`."""
        return (
            quiet(self.home)
            | self.s3.environment()
            | {
                "PREFECT_API_URL": self.server.api_url,
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # a lost run is noticed in minutes, not many
                "PREFECT_WORKER_QUERY_SECONDS": "2",  # the default, 10, is what a child run would wait for
                "OPTUNE_STORE": f"s3://{BUCKET}",
                "OPTUNE_ROOT": str(self.project),  # where a worker here finds the flows: prefect.yaml
            }
        )

    def _write_env(self) -> None:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.run_settings().items()]
        text = "\n".join(["unset AWS_PROFILE AWS_SESSION_TOKEN PREFECT_PROFILE", *lines, ""])
        write_private(self.env_file, text)

    def _deploy(self) -> None:
        """`prefect deploy --all`; without OPTUNE_ROOT, which each worker's own machine fills in."""
        log = self.folder / "deploy.log"
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        command += ["--prefect-file", str(self.prefect_file)]
        settings = environment(self.run_settings())
        settings.pop("OPTUNE_ROOT", None)
        with log.open("wb") as output:
            done = subprocess.run(command, env=settings, cwd=self.project, stdout=output, stderr=output)
        if done.returncode:
            raise StackError(f"the flows of {self.prefect_file} were not deployed.\n{tail(log)}")
        # A file that Prefect finds invalid is "skipped" with success, so look for what it should have made.
        wanted = {entry["name"] for entry in yaml.safe_load(self.prefect_file.read_text())["deployments"]}
        missing = wanted - self.server.deployment_names()
        if missing:
            raise StackError(f"not deployed: {', '.join(sorted(missing))}.\n{tail(log)}")

    def _wipe(self) -> None:
        """Delete what the stack made, by name: the folder may be one that holds other things as well."""
        for part in {daemon.folder for daemon in self.daemons()} | {self.home}:
            shutil.rmtree(part, ignore_errors=not part.exists())
        for file in (self.env_file, self.folder / "deploy.log", self.folder / "lock"):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` on a folder at a time."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as busy:
            raise StackError(f"another `up` or `down` is at work on {self.folder}") from busy
        finally:
            os.close(lock)


def _ended(was_running: bool) -> str:
    return "stopped" if was_running else "was not running"
