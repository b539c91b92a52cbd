"""Fake judge: a small server with OpenAI's chat API that scores answers by their number of distinct letters."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ASKED = re.compile(
    r"\[Question\]\n(.*)\n"
    r"\[The Start of Assistant1’s Answer\]\n(.*)\n\[The End of Assistant1’s Answer\]\n"
    r"\[The Start of Assistant2’s Answer\]\n(.*)\n\[The End of Assistant2’s Answer\]\n"
    r"We would like to request your feedback",
    re.DOTALL,
)

Asked = tuple[str, str, str]
"""(question, answer 1, answer 2)."""


def score(answer: str) -> int:
    """Return a score from 1 to 10."""
    return min(10, 1 + len(set(answer.lower()) - {" "}) // 3)


def rate(question: str, first: str, second: str) -> str:
    """Rate both answers as the prompt asks, without bias."""
    return f"{score(first)} {score(second)}\nCounted letters for {question!r}."


class FakeJudge:
    """Records the requests to the server, and decides about its replies."""

    prompt = _ASKED
    """Pattern of the prompt, with groups for a question and two answers. Any other prompt fails the test."""

    def __init__(self, reply: Callable[[str, str, str], str]) -> None:
        self.reply = reply
        self.failures: list[tuple[int, dict[str, str]]] = []
        """(status, error) with which the next requests fail, in order."""
        self.keeps_waiting: Callable[[str, str, str], bool] = lambda *asked: False
        """Function that returns whether a request is left without a reply."""
        self.asked: list[Asked] = []
        """Requests that were judged, in order."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._lock = threading.Lock()
        self._end = threading.Event()

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of the reply to a request."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.keys.add(key)
            failure = self.failures.pop(0) if self.failures else None
            found = self.prompt.match(body["messages"][1]["content"])
            assert found is not None, "the prompt does not have the expected form"
            silent = failure is None and self.keeps_waiting(found[1], found[2], found[3])
            if failure is None and not silent:
                self.asked.append((found[1], found[2], found[3]))
                self.bodies.append(body)
        try:
            if silent:
                self._end.wait()
            if failure is not None or silent:
                return failure[0] if failure else 503, {"error": failure[1] if failure else {"message": "late"}}
            text = self.reply(found[1], found[2], found[3])
            usage = {
                "prompt_tokens": 100,
                "completion_tokens": len(text.split()),
                "total_tokens": 100 + len(text.split()),
            }
            return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]} | {
                "choices": [self.choice(text)],
                "usage": usage,
            }
        finally:
            with self._lock:
                self._at_once -= 1

    def choice(self, text: str) -> dict[str, Any]:
        """Return a reply in the form of the API."""
        return {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}

    def end(self) -> None:
        """Release requests that were kept waiting."""
        self._end.set()


@contextmanager
def serving(reply: Callable[[str, str, str], str] = rate, kind: type[FakeJudge] = FakeJudge) -> Iterator[FakeJudge]:
    """Serve a judge on a port of its own; `url` is its base URL."""
    judge = kind(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = judge.answer(body, self.headers.get("Authorization"))
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "20")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Ignore clients that were killed."""

    server = Server(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.end()
        server.shutdown()
        server.server_close()
        thread.join()
