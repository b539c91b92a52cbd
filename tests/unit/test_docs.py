"""The README and the pages of docs/ against the code that they describe."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from flows.cli.commands import app
from optune_core.config import parse_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_configuration_in_the_readme_is_valid() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert parse_config(yaml.safe_load(text), source="README.md").name == "my-run"


def test_tree_in_the_readme_names_every_folder_of_the_core() -> None:
    named = set(re.findall(r"(\w+)/", README[README.index("## The code") : README.index("Read these six files")]))
    folders = {path.parent.name for path in (ROOT / "optune_core").glob("*/__init__.py")}
    assert folders <= named


def test_files_that_the_pages_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(
            r"`((?:configs|docs|flows|tasks|optune_core|deployments|tests)/[\w./-]+)`", page.read_text()
        )
    }
    linked = {(page.name, path) for page in pages[:2] for path in re.findall(r"\]\(([\w/.-]+)", page.read_text())}
    assert len(named) > 30
    assert [each for each in sorted(named | linked) if not (ROOT / each[1]).exists() and "http" not in each[1]] == []


def test_page_of_the_commands_names_every_command() -> None:
    text = (ROOT / "docs" / "use.md").read_text()
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {group.name for group in app.registered_groups if group.name}
    assert len(names) > 8
    assert [name for name in sorted(names) if f"`optune {name}" not in text] == []
