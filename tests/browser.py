"""A real headless Chromium, driven by the DevTools protocol: it presses keys and reads pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.waiting import PATIENCE, until

_CODES = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
_TEXTS = {"Enter": "\r"}


class Browser:
    """One Chromium. Its cookies are in the folder `profile`, so another one with this folder has them too."""

    def __init__(self, profile: Path) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("no Chromium is installed")
        profile.mkdir(exist_ok=True)
        port = profile / "DevToolsActivePort"
        port.unlink(missing_ok=True)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        self._process = subprocess.Popen(
            [chromium, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: (port.exists() and port.read_text().count("\n")) or self._process.poll() is not None)
        assert self._process.poll() is None, "Chromium did not start"
        number, path = port.read_text().split()
        self._socket = connect(f"ws://127.0.0.1:{number}{path}", max_size=None, proxy=None)
        self._calls = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors and warnings of the console, uncaught exceptions and network requests since the start, as text."""
        (page,) = [each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self._session = None
        self._call("Browser.close")
        self._socket.close()
        self._process.wait(PATIENCE)

    def open(self, url: str) -> None:
        """Open a page."""
        self._call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank'")

    def press(self, *keys: str) -> None:
        """Press and release keys, one after another."""
        for key in keys:
            self._call("Input.dispatchKeyEvent", type="keyDown", **_key(key))
            self._call("Input.dispatchKeyEvent", type="keyUp", **_key(key))

    def hold(self, key: str) -> None:
        """Repeat a key as if it were held down."""
        self._call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=True, **_key(key))

    def type(self, text: str) -> None:
        """Write into the element that has the focus."""
        self._call("Input.insertText", text=text)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until the page is loaded and an expression is true; a page being replaced counts as false."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self.value(f"document.readyState == 'complete' && Boolean({expression})"):
                    return
            except AssertionError:  # a page that is being replaced answers with an error
                pass
            assert time.monotonic() < deadline, f"{expression} did not become true; the page: {self.text()}"
            time.sleep(0.02)

    def text(self) -> str:
        """Return the visible text of the page."""
        text: str = self.value("document.body.innerText")
        return text

    def source(self) -> str:
        """Return the HTML of the page as scripts left it."""
        html: str = self.value("document.documentElement.outerHTML")
        return html

    def show(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size in CSS pixels, and the colour scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path, *, complete: bool = False) -> None:
        """Save the visible part, or the complete page, as PNG."""
        picture = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=complete)["data"]
        file.write_bytes(base64.b64decode(picture))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE))
            self._collect(answer.get("method"), answer.get("params", {}))
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _collect(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown" or (
            event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")
        ):
            self.complaints.append(json.dumps(params))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.complaints.append(f"request of {params['request']['url']}")


def _key(key: str) -> dict[str, Any]:
    if key in _CODES:
        return {"key": key, "windowsVirtualKeyCode": _CODES[key], "text": _TEXTS.get(key, "")}
    return {"key": key, "windowsVirtualKeyCode": ord(key.upper()), "text": key}
