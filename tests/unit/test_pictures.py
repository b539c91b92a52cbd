"""Pictures that are SVG files of their own, and the page of an iteration that shows three of them."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from optune_core.data.schemas import REPLAY, only, write_table
from optune_core.reports.picture import data_image, picture
from optune_core.reports.render import iteration_markdown
from optune_core.reports.svg import Chart, Key
from optune_core.storage import ArtifactStore, Work, open_objects
from tests.unit.facts import SECONDS

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text></svg><script>alert(1)</script> & \"'"


def chart(*keys: Key) -> Chart:
    made = Chart("a chart", x=(0, 1), y=(0, 10), legend=keys)
    for key in keys:
        made.line([(0, 0), (1, 10)], key.style)
        made.dots([(1, 10)], key.style, [f"{key.text}: 10"], key.symbol or "circle")
    return made


def texts(root: ElementTree.Element) -> list[str | None]:
    return [element.text for element in root.iter(f"{SVG}text")]


def test_picture_is_one_file_without_script_or_network() -> None:
    root = ElementTree.fromstring(picture(HOSTILE, {HOSTILE: chart(Key(HOSTILE, "c1"))}, notes=[HOSTILE]))
    assert {element.tag for element in root.iter()} <= {
        SVG + name for name in ("svg", "style", "rect", "text", "g", "path", "polyline", "title")
    }
    shown = texts(root)
    assert [shown.count(HOSTILE)] == [4], "title, legend, name and note"
    (style,) = root.iter(f"{SVG}style")
    assert style.text is not None and not re.search(r"url\(|@import|https?:", style.text)


def test_picture_has_its_own_background_and_both_colour_schemes() -> None:
    root = ElementTree.fromstring(picture("title", {"": chart(Key("a", "c1"))}))
    assert root[1].attrib == {"class": "ground", "width": "100%", "height": "100%"}
    assert "prefers-color-scheme: dark" in (root[0].text or "")


def test_panels_share_one_legend_and_lie_in_rows_of_three() -> None:
    key = Key("a", "c1", "square")
    four = ElementTree.fromstring(picture("title", {name: chart(key) for name in "wxyz"}))
    assert texts(four).count("a") == 1
    places = [re.findall(r"\d+", group.attrib["transform"]) for group in four.iter(f"{SVG}g")]
    assert len({x for x, _ in places}) == 3 and len({y for _, y in places}) == 2
    one = ElementTree.fromstring(picture("title", {"x": chart(key)}))
    assert int(one.attrib["width"]) < int(four.attrib["width"]) and int(one.attrib["height"]) < int(
        four.attrib["height"]
    )


def test_everything_lies_inside_the_picture() -> None:
    keys = [Key(f"a rather long name of a line, number {number}", "c1", "star") for number in range(5)]
    root = ElementTree.fromstring(picture("a long title " * 20, {"x": chart(*keys)}, notes=["a long note " * 20]))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter(f"{SVG}text"):
        assert 0 < float(element.attrib["y"]) < height
        assert float(element.attrib["x"]) < width


def test_page_of_an_iteration_shows_its_pairs(tmp_path: Path) -> None:
    columns = only(REPLAY, "chosen_reward", "rejected_reward", "generated_at")
    rows = {"chosen_reward": [2.0, 1.0, None, 3.0], "rejected_reward": [0.0, 0.5, None, 1.0]}
    replay = pa.table(rows | {"generated_at": pa.array([3, 0, None, 3], pa.int32())}, schema=columns)
    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    with store.scratch() as folder:
        write_table(replay, columns, folder / "replay.parquet")
        ref = store.commit(Work("replay", 1, {}), folder, timing={"seconds": 0.0}).ref
    metrics: dict[str, Any] = dict.fromkeys(
        ["rm/chosen", "rm/rejected", "rm/margins", "tokens/chosen", "tokens/rejected", "gain/mean", "age/mean"], 1.0
    )
    metrics |= {"gain/bottom_half_share": None, "reward_length_correlation": None}
    metrics |= {"prompts": 4, "status": {"regenerated": 2, "reused": 1, "unpaired": 1}, "reasons": {"tied": 1}}
    record = {
        "iteration": 3,
        "metrics": {
            "replay": metrics,
            "policy": {"first": {"loss": 0.5}, "last": {"loss": 0.25}},
            "selection": {"selected": 2, "prompts": 4},
        },
        "timing": SECONDS,
        "artifacts": {"replay": ref},
    }
    page = iteration_markdown(store, "run", record)
    assert "**4 prompts** = 2 regenerated, 1 reused, 1 unpaired. Dropped prompts by reason: 1 tied." in page
    pictures = dict(re.findall(r"!\[(\w+)\]\(data:image/svg\+xml;base64,([\w+/=]+)\)", page))
    tips = {
        name: [tip.text for tip in ElementTree.fromstring(base64.b64decode(data)).iter(f"{SVG}title")]
        for name, data in pictures.items()
    }
    assert tips["ages"] == [
        f"t = 3, {age}" for age in ("fresh: 2 pairs", "1 iteration old: 0 pairs", "2: 0 pairs", "3 and more: 1 pairs")
    ]
    assert "t = 3, generation: 50.0 %" in tips["stages"] and "paper, generation: 71.8 %" in tips["stages"]
    areas = re.findall(r'class="area (c\d)" d="([^"]+)"', base64.b64decode(pictures["rewards"]).decode())
    assert [style for style, _ in areas] == ["c2", "c1"]


def test_data_image_is_the_file() -> None:
    svg = picture("π₀", {"": chart(Key("a", "c1"))})
    prefix, data = data_image(svg).split(",")
    assert prefix == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == svg
