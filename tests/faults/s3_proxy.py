"""A scripted HTTP proxy in front of a real S3 server: loses, delays, refuses, cuts and ages answers on demand.

    with S3Proxy(server_url) as proxy:
        proxy.script(lose_answer, "PUT", "manifest.json$")

The client signs the Host header, so requests are forwarded with the headers they came with: the server then checks
the signature against the proxy's address, which is what the client signed.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    """Deliver only so many bytes, then close the connection; None: all of them."""


@dataclass
class Request:
    method: str
    path: str
    """Path of the request line, not decoded, with the query."""
    headers: dict[str, str]
    body: bytes
    proxy: S3Proxy

    def forward(self) -> Answer:
        """Return the answer of the real server."""
        answer = self.proxy.ask_server(self.method, self.path, self.headers, self.body)
        if self.method == "GET" and answer.status == 200:
            self.proxy.remember(self.path, answer)
        return answer


Fault = Callable[[Request], Answer | None]
"""Returns the answer to a request that was hit; None closes the connection without an answer."""


@dataclass
class Planned:
    """A fault in the plan."""

    fault: Fault
    method: str
    path: str
    nth: int
    times: int
    matched: int = 0
    hits: int = 0

    def applies(self, request: Request) -> bool:
        if not re.fullmatch(self.method, request.method) or not re.search(self.path, request.path):
            return False
        self.matched += 1
        if not self.nth <= self.matched < self.nth + self.times:
            return False
        self.hits += 1
        return True


ALWAYS = 1_000_000


class S3Proxy:
    """A proxy on loopback, in threads of this process."""

    def __init__(self, server_url: str) -> None:
        self._server = urlsplit(server_url).netloc
        self._lock = threading.Lock()
        self._plan: list[Planned] = []
        self._remembered: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request that came, in order."""
        self.released = threading.Event()
        """Set it to let go of requests that are held back; set at the end at the latest."""
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._listener.daemon_threads = True
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def script(self, fault: Fault, method: str = ".*", path: str = "", *, nth: int = 1, times: int = 1) -> Planned:
        """Hit the nth matching request (counted from now, from 1) and the times - 1 after it."""
        planned = Planned(fault, method, path, nth, times)
        with self._lock:
            self._plan.append(planned)
        return planned

    def reset(self) -> None:
        """Drop the plan and everything that was recorded."""
        self.heal()
        with self._lock:
            self._remembered.clear()
            self.requests.clear()

    def heal(self) -> None:
        """Drop the plan and let go of what is held back."""
        with self._lock:
            self._plan.clear()
        self.released.set()
        self.released = threading.Event()

    def count(self, method: str, path: str = "") -> int:
        with self._lock:
            return sum(bool(re.fullmatch(method, m) and re.search(path, p)) for m, p in self.requests)

    def answer(self, request: Request) -> Answer | None:
        with self._lock:
            self.requests.append((request.method, request.path))
            planned = next((planned for planned in self._plan if planned.applies(request)), None)
        return request.forward() if planned is None else planned.fault(request)

    def ask_server(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self._server, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("expect", "connection", "transfer-encoding", "content-length"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            content = reply.read()
            kept = {n: v for n, v in reply.getheaders() if n.lower() not in ("transfer-encoding", "connection")}
            return Answer(reply.status, kept, content)
        finally:
            connection.close()

    def remember(self, path: str, answer: Answer) -> None:
        with self._lock:
            self._remembered.setdefault(path, []).append(answer)

    def remembered(self, path: str) -> list[Answer]:
        with self._lock:
            return list(self._remembered.get(path, ()))


# Faults


def lose_answer(request: Request) -> None:
    """The server applies the request, and its answer is lost."""
    request.forward()


def hang_up(request: Request) -> None:
    """The connection breaks before the server saw the request."""


def unavailable(request: Request) -> Answer:
    return _error(503, "ServiceUnavailable")


def slow_down(request: Request) -> Answer:
    return _error(503, "SlowDown")


def broken(request: Request) -> Answer:
    return _error(500, "InternalError")


def conflict(request: Request) -> Answer:
    """The answer of Amazon to a conditional write during another one."""
    return _error(409, "ConditionalRequestConflict")


def own_success_as_412(request: Request) -> Answer:
    """The server's front applied the request, lost its own answer, tried again and was refused by itself."""
    request.forward()
    return _error(412, "PreconditionFailed")


def forbidden(request: Request) -> Answer:
    return _error(403, "AccessDenied")


def no_bucket(request: Request) -> Answer:
    return _error(404, "NoSuchBucket")


def not_there_yet(request: Request) -> Answer:
    """A stale read: as if nothing had been written."""
    return _error(404, "NoSuchKey")


def as_it_was(request: Request) -> Answer:
    """A stale read: the last different answer to the same request, or 404 if there was none."""
    now = request.forward()
    earlier = [answer for answer in request.proxy.remembered(request.path) if answer.body != now.body]
    return earlier[-1] if earlier else not_there_yet(request)


def answer_late(request: Request) -> Answer:
    """The server applies the request at once; the answer is held back until the test lets go."""
    held = request.proxy.released
    answer = request.forward()
    held.wait()
    return answer


def arrive_late(request: Request) -> Answer:
    """The request itself is held back, and applied when the test lets go: long after its sender gave it up."""
    held = request.proxy.released
    held.wait()
    return request.forward()


def cut_off(delivered: Callable[[int], int]) -> Fault:
    """The connection closes after some of the announced bytes."""

    def fault(request: Request) -> Answer:
        answer = request.forward()
        answer.cut = delivered(len(answer.body))
        return answer

    return fault


def shortened(delivered: Callable[[int], int]) -> Fault:
    """Some of the bytes, announced as all of them."""

    def fault(request: Request) -> Answer:
        answer = request.forward()
        answer.body = answer.body[: delivered(len(answer.body))]
        answer.headers = {name: value for name, value in answer.headers.items() if "checksum" not in name.lower()}
        return answer

    return fault


def without(header: str, access_key: str, secret_key: str) -> Fault:
    """A server that ignores a condition. The header is signed, so the request is signed anew without it."""

    def fault(request: Request) -> Answer:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        gone = {header.lower(), "authorization", "x-amz-date", "x-amz-content-sha256", "content-length", "expect"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in gone}
        url = f"http://{request.headers['Host']}{request.path}"
        signed = AWSRequest(request.method, url, data=request.body, headers=headers)
        S3SigV4Auth(Credentials(access_key, secret_key), "s3", "us-east-1").add_auth(signed)
        return request.proxy.ask_server(request.method, request.path, dict(signed.headers.items()), request.body)

    return fault


def clock_off_by(seconds: float) -> Fault:
    """A server whose clock is wrong: every time in its answers is shifted."""

    def shifted(stamp: str) -> str:
        return (datetime.fromisoformat(stamp) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def fault(request: Request) -> Answer:
        answer = request.forward()
        for name, value in answer.headers.items():
            if name.lower() in ("date", "last-modified"):
                moved = parsedate_to_datetime(value) + timedelta(seconds=seconds)
                answer.headers[name] = format_datetime(moved, usegmt=True)
        answer.body = re.sub(
            rb"(?<=<LastModified>)[^<]+", lambda found: shifted(found[0].decode()).encode(), answer.body
        )
        return answer

    return fault


def _error(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml"}, body)


def _handler(proxy: S3Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self.close_connection = True  # a connection a request: a broken one then hits no other
            headers = dict(self.headers.items())
            request = Request(self.command, self.path, headers, self._body(), proxy)
            with suppress(ConnectionError):  # the client gave up
                answer = proxy.answer(request)
                if answer is not None:
                    self._send(answer)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _send(self, answer: Answer) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.cut])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
