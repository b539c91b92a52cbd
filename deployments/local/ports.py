"""Ports on loopback: the usual one if it is free, otherwise another, and the same one after a restart."""

import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path

from deployments.local.processes import write_private

TWIN = 10_000
"""Distance of the gRPC port that SeaweedFS opens for every port."""


def is_free(port: int) -> bool:
    """Return whether no process listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection in TIME_WAIT does not use the port
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remembered(file: Path) -> dict[str, int]:
    """Return the ports that `choose` wrote to a file, by name."""
    return json.loads(file.read_text()) if file.exists() else {}


def choose(file: Path, usual: Mapping[str, int | None], *, twins: bool = False) -> dict[str, int]:
    """Choose a free port for each name, and remember it in a file.

    If another process takes a port before it is used, that part of the stack fails to start, and the next `up` chooses
    another port.

    Args:
        file: JSON file of the chosen ports.
        usual: usual port of each name; None: any. The port of an earlier call has precedence.
        twins: whether `port + TWIN` has to be free, too.

    Raises:
        OSError: no free port was found.
    """
    before = remembered(file)
    claimed: set[int] = set()
    chosen: dict[str, int] = {}
    for name, default in usual.items():
        # Random ports and their twins are below the range from which the system takes ephemeral ports.
        candidates = [before.get(name), default, *random.sample(range(11_000, 22_000), 200)]
        for port in filter(None, candidates):
            needed = {port, port + TWIN} if twins else {port}
            if not claimed & needed and all(map(is_free, needed)):
                chosen[name] = port
                claimed |= needed
                break
        else:
            raise OSError(f"no free port on 127.0.0.1 for {name}: 200 random ones from 11000 to 21999 are taken")
    write_private(file, json.dumps(chosen))
    return chosen
