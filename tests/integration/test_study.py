"""A human study with real servers and a real headless Chromium: several participants, a killed server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import httpx
import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from tests.browser import Browser
from tests.tiny import write_config
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

PROMPTS = [f"What are {number} good habits for somebody who works from home?" for number in range(4)]
LONG = "A response of some length, with_a_word_that_no_line_of_a_phone_can_hold_" + "x" * 80 + ". " + "More. " * 200


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@contextmanager
def server(store: str, *options: str, port: int = 0) -> Iterator[tuple[str, Popen[str]]]:
    """Start a real server of the study `habits`. Yields its URL and its process."""
    optune = Path(sys.executable).with_name("optune")
    command = [str(optune), "study", "serve", "habits", "--store", store, "--port", str(port), *options]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert "http://" in line, process.stderr.read()
        try:
            yield line.split()[2].rstrip("/"), process
        finally:
            process.kill()


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with the study `habits`: two comparisons, four prompts each."""
    store = str(tmp_path / "store")
    sources = []
    for name in ("optune", "full", "random"):
        rows = [{"prompt": prompt, "response": f"{n}{name[-1]}. {LONG}"} for n, prompt in enumerate(PROMPTS)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(f"{name}={tmp_path}/{name}.jsonl")
    printed = call("study", "create", "habits", "--responses", *sources, "--store", store)
    assert "optune against full: 4 prompts are asked about" in printed
    return store


def join(browser: Browser, url: str, name: str) -> None:
    """Go from the first page to the first pair with keys only."""
    browser.open(url)
    browser.wait("document.activeElement.id == 'name'")
    browser.type(name)
    browser.press("Enter")
    browser.wait("location.pathname == '/guidelines'")
    browser.press("Tab", "Enter")
    at(browser, 1)


def at(browser: Browser, number: int) -> None:
    browser.wait(f"location.pathname == '/pair/{number}'")


def responses(browser: Browser) -> list[str]:
    """Return the first letters of the two responses, which mark their sources for this test only."""
    texts: list[str] = browser.value(
        "[...document.querySelectorAll('.response .text')].map(e => e.innerText.slice(0, 2))"
    )
    return texts


def results(store: str) -> dict[str, object]:
    summary: dict[str, object] = json.loads(call("study", "results", "habits", "--json", "--store", store))
    return summary


def test_a_complete_session_works_by_keyboard(store: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with server(store) as (url, process), Browser(tmp_path / "profile") as browser:
        join(browser, url, "Anna")
        assert "1 of 8" in browser.text()
        seen = []
        for number, key in enumerate(["1", "2", "0", "ArrowLeft", "ArrowRight"], start=1):
            at(browser, number)
            seen.append(responses(browser))
            browser.hold("1")  # a key that is still down from the pair before
            browser.press("ArrowDown")  # scrolls
            assert browser.value("location.pathname") == f"/pair/{number}"
            browser.press(key)
        at(browser, 6)
        browser.press("b")
        at(browser, 5)
        assert browser.value("document.querySelector('[aria-pressed=true]').value") == "second"
        browser.press("0")
        at(browser, 6)
        browser.press("Tab", "Tab", "Tab")
        assert browser.value("document.activeElement.value") == "first"
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for number in (6, 7, 8):
            at(browser, number)
            browser.press("2")
        browser.wait("location.pathname == '/done'")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    took = time.monotonic() - began
    file = tmp_path / "ratings.jsonl"
    call("study", "results", "habits", "--store", store, "--ratings", str(file))
    ratings = [json.loads(line) for line in file.read_text().splitlines()]
    chosen = ["first", "second", "equal", "first", "equal", "second", "second", "second"]
    assert [row["choice"] for row in ratings] == chosen
    assert [row["submissions"] for row in ratings] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert [[row["first"][-1], row["second"][-1]] for row in ratings[:5]] == [
        [text[1] for text in pair] for pair in seen
    ]
    assert all(0 < row["seconds"] < took for row in ratings)
    summary = json.loads(call("study", "results", "habits", "--json", "--store", store))
    assert summary["ratings"] == 8
    for comparison in summary["comparisons"]:
        outcomes = Counter(row["outcome"] for row in ratings if row["baseline"] == comparison["baseline"])
        assert comparison["counts"] == {"win": 0, "loss": 0, "tie": 0} | outcomes


def test_a_killed_server_and_a_closed_browser_lose_no_choice(store: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        with server(store) as (url, process):
            join(browser, url, "Ben")
            for number in (1, 2, 3):
                at(browser, number)
                browser.press("1")
            at(browser, 4)  # the third is acknowledged
            pair = responses(browser)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert results(store)["ratings"] == 3
        with server(store, port=int(url.rpartition(":")[2])):
            browser.press("2")  # on the page that it shows since before the kill
            at(browser, 5)
    with server(store) as (url, _):
        with Browser(tmp_path / "profile") as browser:  # its cookie is enough
            browser.open(url)
            at(browser, 5)
            browser.press("b")
            at(browser, 4)
            assert responses(browser) == pair
        with Browser(tmp_path / "other-device") as browser:  # the name is enough
            browser.open(url)
            browser.wait("document.activeElement.id == 'name'")
            browser.type("ben")
            browser.press("Enter")
            at(browser, 5)


def test_two_participants_at_once_get_different_pairs(store: str, tmp_path: Path) -> None:
    options = ("--pairs-per-participant", "4")
    with server(store, *options) as (url, _), Browser(tmp_path / "one") as one, Browser(tmp_path / "two") as two:
        for browser, name in ((one, "one"), (two, "two")):
            join(browser, url, name)
        for number in range(1, 5):
            for browser, key in ((one, "1"), (two, "0")):
                at(browser, number)
                browser.press(key)
        for browser in (one, two):
            browser.wait("location.pathname == '/done'")
    file = tmp_path / "ratings.jsonl"
    printed = call("study", "results", "habits", "--store", store, "--ratings", str(file))
    assert "one" in printed and "two" in printed
    rated = Counter((row["baseline"], row["prompt_id"]) for row in map(json.loads, file.read_text().splitlines()))
    assert len(rated) == 8 and set(rated.values()) == {1}, "eight pairs, four each: none is rated twice"


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_everything_without_scrolling_sideways(store: str, tmp_path: Path, width: int) -> None:
    with server(store) as (url, _), Browser(tmp_path / "profile") as browser:
        browser.show(width, 740, phone=True)
        join(browser, url, "phone")
        browser.press("1")
        at(browser, 2)
        for page in ("/pair/1", "/pair/2", "/guidelines"):
            browser.open(url + page)
            assert browser.value("document.documentElement.scrollWidth") == width
        browser.open(url + "/pair/2")
        first, second = browser.value(
            "[...document.querySelectorAll('.response')].map(e => e.getBoundingClientRect().top)"
        )
        assert second > first, "one below the other"
        sizes = browser.value("[...document.querySelectorAll('.choices button')].map(e => e.offsetHeight)")
        assert min(sizes) >= 44, "large enough for a finger"
        browser.show(1280, 800)
        browser.wait("innerWidth == 1280")
        first, second = browser.value(
            "[...document.querySelectorAll('.response')].map(e => e.getBoundingClientRect().top)"
        )
        assert second == first, "side by side"


def test_a_public_address_is_warned_about_and_a_used_port_is_refused(store: str) -> None:
    with server(store, "--host", "0.0.0.0") as (_, process):
        assert process.stdout is not None
        process.stdout.readline()
        assert "0.0.0.0 is not a loopback address" in process.stdout.readline()
    with server(store) as (url, _):
        optune = Path(sys.executable).with_name("optune")
        command = [str(optune), "study", "serve", "habits", "--store", store, "--port", url.rpartition(":")[2]]
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2 and "choose another --host or --port" in second.stderr


def test_two_servers_share_a_study_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    """Each server sees what the other one recorded."""
    store = f"{s3_bucket}/study"
    sources = []
    for name in ("ours", "theirs"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "Why?", "response": name}) + "\n")
        sources.append(f"{name}={tmp_path}/{name}.jsonl")
    call("study", "create", "habits", "--responses", *sources, "--store", store)
    with server(store) as (one, _), server(store) as (two, _), httpx.Client(follow_redirects=True) as client:
        assert client.post(f"{one}/join", data={"name": "anna"}).url.path == "/guidelines"
        token = client.get(f"{two}/pair/1").text.partition('name="token" value="')[2].partition('"')[0]
        done = client.post(f"{two}/pair/1", data={"choice": "first", "token": token})
        assert done.url.path == "/done"
        assert client.get(f"{one}/pair").url.path == "/done"
    assert results(store)["ratings"] == 1


def test_a_study_compares_the_last_policies_of_two_runs(tiny: Path, prefect_server: None, tmp_path: Path) -> None:
    from flows.run import optune

    store = str(tmp_path / "runs")
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        config = write_config(tiny, name=name, iterations=1, training={"learning_rate": rate})
        optune(str(config), store=store)
    printed = call("study", "create", "runs", "--runs", "slow", "fast", "--prompts", "4", "--store", store)
    assert "slow: policy 1 of the run" in printed
    assert "slow against fast: 4 prompts are asked about" in printed
    call("gc", "--grace", "0", "--store", store)
    assert "0 of 4" in call("study", "results", "runs", "--store", store)
