"""Loopback ports: the usual one if it is free, else another, and the same again after a restart."""

import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path

from deployments.local.processes import write_private

TWIN = 10_000  # SeaweedFS opens `port + 10000` for gRPC beside every port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a lingering TIME_WAIT is no user
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remembered(file: Path) -> dict[str, int]:
    return json.loads(file.read_text()) if file.exists() else {}


def choose(file: Path, usual: Mapping[str, int | None], *, twins: bool = False) -> dict[str, int]:
    """One free port a name: last time's, else the usual one, else any; remembered in `file`.

    Between the look and the use another process can take the port: the part then fails to start and
    says so, and the next `up` picks another.
    """
    before = remembered(file)
    claimed: set[int] = set()
    chosen: dict[str, int] = {}
    for name, default in usual.items():
        # Random ones stay, with their twins, below the range from which the system takes its own.
        candidates = [before.get(name), default, *random.sample(range(11_000, 22_000), 200)]
        for port in filter(None, candidates):
            wanted = {port, port + TWIN} if twins else {port}
            if not claimed & wanted and all(map(is_free, wanted)):
                chosen[name] = port
                claimed |= wanted
                break
        else:
            raise OSError(f"no free port on 127.0.0.1 for {name}, 200 tried")
    write_private(file, json.dumps(chosen))
    return chosen
