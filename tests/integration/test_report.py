"""The page of real runs of the tiny model, as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from optune_core.errors import CorruptArtifact, OptuneError
from optune_core.storage import ArtifactStore, Ledger, open_objects
from optune_core.storage.canonical import canonical_json
from optune_core.storage.lease import hold
from tests.browser import Browser
from tests.tiny import PROMPTS, write_config

pytestmark = pytest.mark.slow

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
SECTIONS = [
    "What was run",
    "Held-out rewards",
    "Win score: against-start",
    "Iterations",
    "Reward analysis",
    "Where the time went",
    "Which half brings the gain",
    "Rewards and reward gaps",
    "Length",
    "Distance to the reference",
    "Age of the pairs",
    "Training",
    "Prompts that changed most",
]
CONTRASTS = """
(() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  document.querySelectorAll('details').forEach(each => each.open = true);
  const low = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    if (node.closest('title')) continue;
    const style = getComputedStyle(node);
    const ink = light(parts(node.closest('svg') ? style.fill : style.color)), page = light(behind(node));
    const ratio = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName}.${node.className.baseVal ?? node.className}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
})()
"""


@pytest.fixture(scope="module")
def store(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs `online` (two iterations, hostile prompts, a win score) and `offline` (fixed pairs, no held-out prompts)."""
    from flows.run import optune

    folder = tmp_path_factory.mktemp("report")
    store = str(folder / "store")
    prompts = [{"prompt": f"{prompt} {HOSTILE}"} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    source = {"type": "file", "path": str(folder / "prompts.jsonl")}
    # Long prompts: the tiny tokenizer has hardly a merge.
    optune(str(write_config(tiny, name="online", prompts={"source": source, "max_tokens": 256})), store=store)

    pairs = [{"prompt": f"Question {i}", "chosen": "aeiou " * (1 + i % 3), "rejected": "xyz"} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    offline = write_config(
        tiny,
        name="offline",
        iterations=2,
        prompts={
            "source": {"type": "file", "path": str(folder / "pairs.jsonl")},
            "pairs": {"chosen": "chosen", "rejected": "rejected"},
            "sample": None,
            "held_out": 0,
        },
        replaced={"selection": {"type": "none"}, "held_out": {"gold": None}},
        training={"reference": "initial"},
    )
    optune(str(offline), store=store)
    metrics = {"win_score": 62.5, "low": 50.0, "high": 75.0, "wins": 2, "ties": 3, "losses": 1, "total": 6}
    metrics |= {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": None}
    record = {
        "kind": "win_score",
        "name": "against-start",
        "iteration": 2,
        "baseline": "the policy it started from",
        "judge": "stand-in: vowels",
        "prompts": 6,
        "metrics": metrics | {"malformed": 0},
    }
    open_objects(store).create("runs/online/evaluations/against-start/0002.json", canonical_json(record))
    return store


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def report(store: str, out: Path, *runs: str) -> Path:
    result = CliRunner().invoke(app, ["report", *runs, "--store", store, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def show(browser: Browser, page: Path, *, width: int, dark: bool = False) -> None:
    browser.show(width, 844, dark=dark, phone=width < 600)
    browser.open(page.as_uri())


def overflow(browser: Browser) -> int:
    """Return the pixels by which the page is wider than the screen, with everything unfolded."""
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    pixels: int = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return pixels


def headings(browser: Browser) -> list[str]:
    found: list[str] = browser.value("[...document.querySelectorAll('h2, h3')].map(each => each.innerText)")
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1180, 390])
def test_a_page_is_readable_on_any_screen_in_light_and_dark(
    store: str, browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    show(browser, report(store, tmp_path / "page.html", "online"), width=width, dark=dark)
    assert overflow(browser) == 0
    assert browser.value(CONTRASTS) == []
    red, green, blue = map(int, re.findall(r"\d+", browser.value("getComputedStyle(document.body).backgroundColor")))
    assert (max(red, green, blue) < 64) if dark else (min(red, green, blue) > 192)
    assert browser.complaints == []
    assert set(SECTIONS) <= set(headings(browser))
    text = browser.text()
    for expected in ("ρ = 0.5", "62.5", "stand-in: vowels", "tests.rewards:brevity", "Speed-up"):
        assert expected in text
    assert browser.value("document.querySelectorAll('svg.chart').length") >= 12
    assert browser.value("[...document.querySelectorAll('svg.chart')].every(e => !/NaN|inf/.test(e.outerHTML))")


def test_markup_in_prompts_is_inert(store: str, browser: Browser, tmp_path: Path) -> None:
    show(browser, report(store, tmp_path / "page.html", "online"), width=1180)
    assert overflow(browser) == 0
    assert "onerror=\"document.title = 'owned'\"" in browser.text(), "an example shows its prompt"
    assert browser.value("document.title") == "OPTune: online"
    assert browser.value("document.querySelectorAll('script, img').length") == 0


def test_the_page_shows_the_values_of_the_ledger(store: str, browser: Browser, tmp_path: Path) -> None:
    show(browser, report(store, tmp_path / "page.html", "online"), width=1180)
    objects = ArtifactStore(open_objects(store))
    evaluation = Ledger(objects.objects, "online").held_out(2)
    assert evaluation is not None
    rows: list[list[str]] = browser.value(
        "[...document.querySelectorAll('.held-out table')[0].rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert rows[-1][:2] == ["π₂", f"{evaluation['metrics']['proxy']:.3f}".replace("-", "−")]
    iterations: list[list[str]] = browser.value(
        "[...document.querySelectorAll('.iterations table')[0].rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert [int(row[1]) + int(row[2]) + int(row[3]) for row in iterations[1:]] == [12, 12]
    record = Ledger(objects.objects, "online").iteration(1)
    assert record is not None
    log = objects.read(record["artifacts"]["policy"], "train_log.jsonl").decode().splitlines()
    points = browser.value("document.querySelector('[aria-label^=\"loss\"] polyline').getAttribute('points')")
    assert len(points.split()) == 2 * len(log)


def test_two_runs_are_compared_and_the_second_is_offline(store: str, browser: Browser, tmp_path: Path) -> None:
    show(browser, report(store, tmp_path / "page.html", "online", "offline", "online"), width=390)
    assert overflow(browser) == 0
    assert browser.complaints == []
    found = headings(browser)
    assert found.count("What was run") == 2
    assert "Side by side" in found
    text = browser.text()
    assert "selection.type" in text
    assert "No held-out rewards: the run has no held-out prompts." in text
    assert "No prompt was regenerated a second time yet." in text


def test_the_end_of_a_run_stores_its_page_and_repeating_it_replaces_it(
    store: str, tiny: Path, prefect_server: None, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    from flows.run import optune

    def without_clock(page: str) -> str:
        return re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)

    stored = Path(store) / "runs" / "offline" / "report.html"
    assert without_clock(stored.read_text()) == without_clock(
        report(store, tmp_path / "page.html", "offline").read_text()
    )
    stored.write_text("an earlier page")
    optune(None, store=store, run="offline")
    assert "What was run" in stored.read_text()
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    assert any(str(stored) in str(artifact.data) for artifact in artifacts)


def test_an_unfinished_run_has_a_page(store: str, browser: Browser, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    (copy / "runs/online/iterations/0001.json").unlink()
    (copy / "runs/online/held_out/0002.json").unlink()
    show(browser, report(str(copy), tmp_path / "page.html", "online"), width=1180)
    assert "1 of 2 iterations" in browser.text()
    assert "Reward analysis" in headings(browser)

    config: Any = Ledger(open_objects(store), "online").config()
    with hold(open_objects(str(copy)), "begun", config):
        show(browser, report(str(copy), tmp_path / "begun.html", "begun"), width=1180)
    assert "0 of 2 iterations · working" in browser.text()
    assert "No iteration is committed yet." in browser.text()


def test_a_damaged_log_is_named_and_marked_to_be_made_again(store: str, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    record = Ledger(open_objects(str(copy)), "online").iteration(0)
    assert record is not None
    (log,) = (copy / "artifacts" / "policy" / record["artifacts"]["policy"].key).glob("*/train_log.jsonl")
    log.write_bytes(log.read_bytes().replace(b"loss", b"gain"))
    with pytest.raises(CorruptArtifact, match=r"train_log\.jsonl"):
        report(str(copy), tmp_path / "page.html", "online")
    assert list(log.parents[1].glob("*.damaged"))


def test_an_unknown_run_and_an_impossible_file_are_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(OptuneError, match="no run 'absent'; its runs: offline, online"):
        report(store, tmp_path / "page.html", "online", "absent")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(OptuneError, match="cannot be written"):
        report(store, tmp_path / "missing" / "page.html", "online")
