"""The stack of all parts: the order in which they start, and the settings with which a shell uses them."""

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
    """PostgreSQL, SeaweedFS, a Prefect server and one worker per work pool."""

    def __init__(
        self,
        folder: Path,
        project: Path = REPOSITORY,
        prefect_file: str = DEPLOYMENTS,
        *,
        ui_port: int | None = UI_PORT,
        s3_port: int | None = S3_PORT,
    ) -> None:
        """
        Args:
            folder: folder of all data, pids and logs.
            project: folder of the flows.
            prefect_file: file with the deployments, relative to `project`.
            ui_port, s3_port: usual ports; one that is taken, or None, is replaced by a free one.
        """
        self.folder = Path(folder).absolute()
        self.project = Path(project).resolve()
        self.prefect_file = self.project / prefect_file
        self.env_file = self.folder / "env"
        self.home = self.folder / "prefect"
        self.postgres = Postgres(self.folder / "postgres")
        self.s3 = SeaweedFS(self.folder / "seaweedfs", s3_port=s3_port, bucket=BUCKET)
        self.server = Server(self.folder / "server", self.home, ui_port)
        self.workers = [Worker(pool, self.folder / pool) for pool in POOLS]

    def up(self, echo: Callable[[str], None] = print) -> None:
        """Start the parts that are not running and healthy, and deploy the flows. May be repeated at any time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            echo("starting PostgreSQL …")
            self.postgres.start()
            echo("starting SeaweedFS …")
            self.s3.start()
            echo("starting the Prefect server …")
            self.server.start(self.postgres.url)
            self.server.ensure_pools()
            self.server.ensure_automations(AUTOMATIONS)
            self._write_env()
            echo("starting the workers and deploying the flows …")
            for worker in self.workers:
                worker.start(self.server, self.run_settings())
            self._deploy()
            for worker in self.workers:
                worker.wait(self.server)

    def down(self, *, wipe: bool = False, echo: Callable[[str], None] = print) -> None:
        """Stop the processes that `up` started, and no others; with `wipe` delete the data, too."""
        if not self.folder.exists():
            return echo(f"nothing to stop: the folder {self.folder} does not exist")
        with self._alone():
            # One after the other, clients first, so that none loses a server that it still uses.
            for worker in self.workers:
                echo(f"{worker.daemon.name}: {_ended(worker.daemon.stop(grace=30))}")
            echo(f"Prefect server: {_ended(self.server.daemon.stop(grace=8))}")
            echo(f"SeaweedFS: {_ended(self.s3.stop())}")
            echo(f"PostgreSQL: {_ended(self.postgres.stop())}")
            if wipe:
                self._wipe()

    def status(self) -> dict[str, str]:
        """Return the state of each part, by its name: its pid, and whether it answers."""
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
        """Return the background processes of the stack, in the order of their starts."""
        clients = [worker.daemon for worker in self.workers]
        return [self.postgres.daemon, self.s3.daemon, self.server.daemon, *clients]

    def run_settings(self) -> dict[str, str]:
        """Return the settings for workers, their flow runs and a user's shell. They include secrets, so the file `env`
        is private."""
        return (
            quiet(self.home)
            | self.s3.environment()
            | {
                "PREFECT_API_URL": self.server.api_url,
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # automations.yaml expects a heartbeat every 30 s
                "PREFECT_WORKER_QUERY_SECONDS": "2",  # with the default a child run would wait up to 10 s for a worker
                "OPTUNE_STORE": f"s3://{BUCKET}",
                "OPTUNE_ROOT": str(self.project),  # prefect.yaml takes the folder of the flows from it
            }
        )

    def _write_env(self) -> None:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.run_settings().items()]
        text = "\n".join(["unset AWS_PROFILE AWS_SESSION_TOKEN PREFECT_PROFILE", *lines, ""])
        write_private(self.env_file, text)

    def _deploy(self) -> None:
        """Run `prefect deploy --all`, without OPTUNE_ROOT, which each worker's machine fills in."""
        log = self.folder / "deploy.log"
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        command += ["--prefect-file", str(self.prefect_file)]
        settings = environment(self.run_settings())
        settings.pop("OPTUNE_ROOT", None)
        with log.open("wb") as output:
            done = subprocess.run(command, env=settings, cwd=self.project, stdout=output, stderr=output)
        if done.returncode:
            raise StackError(f"`prefect deploy` failed for {self.prefect_file}.\n{tail(log)}")
        # Prefect "skips" an entry that it finds invalid and reports success, so the result has to be checked.
        expected = {entry["name"] for entry in yaml.safe_load(self.prefect_file.read_text())["deployments"]}
        missing = expected - self.server.deployment_names()
        if missing:
            raise StackError(
                f"`prefect deploy` skipped the deployments {', '.join(sorted(missing))} of {self.prefect_file}.\n"
                f"{tail(log)}"
            )

    def _wipe(self) -> None:
        """Delete the files and folders that the stack made, by name, since its folder may contain others."""
        for part in {daemon.folder for daemon in self.daemons()} | {self.home}:
            shutil.rmtree(part, ignore_errors=not part.exists())
        for file in (self.env_file, self.folder / "deploy.log", self.folder / "lock"):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Allow one `up` or `down` on a folder at a time."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as busy:
            raise StackError(
                f"another `up` or `down` works on {self.folder}: wait for it to end, then try again"
            ) from busy
        finally:
            os.close(lock)


def _ended(was_running: bool) -> str:
    return "stopped" if was_running else "was not running"
