"""Web server of a study."""

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
    store: ArtifactStore, study: str, host: str, port: int, pairs_per_participant: int, echo: Callable[[str], None]
) -> None:
    """Serve a study until interrupted. Stopping or killing the server loses nothing, since all choices are stored.

    Args:
        store: the store.
        study: name of the study.
        host: address to listen on.
        port: port to listen on; 0: any free one.
        pairs_per_participant: largest number of pairs for participants who join from now on.
        echo: called with the lines to print, among them the study's URL.

    Raises:
        StudyError: the study does not exist, or the server cannot listen on the address.
    """
    import uvicorn

    from optune_core.study.web import study_app

    ledger, record, pairs = open_study(store, study)
    sessions = Sessions(ledger, pairs, pairs_per_participant)
    local = is_loopback(host)
    app = study_app(study, sessions, pairs, ["localhost", "127.0.0.1", "[::1]", host] if local else ["*"])
    with _listen(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listening.getsockname()[1]}/"
        echo(f"study {study}: {url} (Ctrl-C stops the server; starting it again continues the study)")
        compared = len(record["comparisons"])
        echo(f"pairs: {len(pairs)}; comparisons: {compared}; pairs per participant: at most {pairs_per_participant}")
        if not local:
            echo(
                f"Note: {host} is not a loopback address. Everyone who reaches it can take part and read the pairs, "
                "and nothing is encrypted: where that matters, put a server with TLS and a password in front."
            )
        # uvicorn handles these while it serves. It raises them again afterwards, when nothing is left to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        server.run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
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
            f"the server cannot listen on {host}:{port} ({error.strerror or error}): choose another --host or --port"
        ) from error
