"""A study's web server."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable

from optune_core.errors import StudyError
from optune_core.storage import ArtifactStore
from optune_core.study.create import open_study
from optune_core.study.sessions import Sessions


def serve_study(
    store: ArtifactStore, study: str, host: str, port: int, pairs_per_participant: int, say: Callable[[str], None]
) -> None:
    """Serve until interrupted. Stopping and killing lose nothing: what was chosen is in the store.

    Args:
        host: address to listen on.
        port: 0: any free one.
        pairs_per_participant: for those who join from now on.
        say: told where the study is.

    Raises:
        StudyError: there is no such study, or the address cannot be listened on.
    """
    import uvicorn

    from optune_core.study.web import study_app

    ledger, record, pairs = open_study(store, study)
    sessions = Sessions(ledger, pairs, pairs_per_participant)
    local = is_loopback(host)
    app = study_app(study, sessions, pairs, ["localhost", "127.0.0.1", "[::1]", host] if local else ["*"])
    with _listen(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        say(f"study {study}: http://{name}:{listening.getsockname()[1]}/ (Ctrl-C ends it, and it may be started again)")
        compared = len(record["comparisons"])
        say(f"pairs: {len(pairs)}; comparisons: {compared}; pairs a participant: at most {pairs_per_participant}")
        if not local:
            say(
                f"Note: {host} is no loopback address. Whoever reaches it can take part and read the pairs, and "
                "nothing is encrypted: put a server with TLS and a password in front where that matters."
            )
        # While it serves, uvicorn ends at these; afterwards it raises them again, when there is nothing left to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        server.run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StudyError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): choose another --host or --port"
        ) from error
