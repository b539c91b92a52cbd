"""What mkdocs does on top of the pages in this folder.

- A line that ends with `<!-- readme HEADING -->` becomes that section of the README, `start` what is above the first.
- A line that ends with `<!-- fields module:Name -->` becomes the fields of that section of a configuration.
- `Reference` holds a page a folder of the code, made from its docstrings.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from fields import Fields  # noqa: E402

from optune_core.parts.section import Section  # noqa: E402

log = logging.getLogger("mkdocs.plugins.optune")

CONFIGURATION = "optune_core.config.run:OptuneConfig"
_ITS_DOCSTRING = "{members: false, show_root_heading: false, show_root_toc_entry: false}"
_FIELDS = re.compile(r"^.*<!-- fields (\S+) -->$", re.MULTILINE)
_README_PART = re.compile(r"^.*<!-- readme (.+) -->$", re.MULTILINE)
_TO_DOCS = re.compile(r"\]\(docs/([^)]+)\)")


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation."""
    pages: list[Any] = [{title.removeprefix("optune_core."): page} for title, page, _ in _reference()]
    config.nav.append({"Reference": [{"Reference": "reference/index.md"}, *pages]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference."""
    listed = []
    for title, page, (package, *modules) in _reference():
        blocks = [f"# `{title}`", f"::: {package}\n    options: {_ITS_DOCSTRING}", *(f"::: {each}" for each in modules)]
        files.append(File.generated(config, page, content="\n\n".join(blocks)))
        listed.append(f"- [`{title}`]({Path(page).name})")
    intro = (
        "# Reference\n\nThe code's docstrings, a page a folder. "
        "[Architecture](../architecture.md) says what each folder is for.\n\n"
    )
    files.append(File.generated(config, "reference/index.md", content=intro + "\n".join(listed)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the parts of the README and the fields of the configuration."""
    markdown = _README_PART.sub(lambda found: _readme(found[1]), markdown)
    return _FIELDS.sub(lambda found: _fields(found[1], page.file.src_uri), markdown)


def _readme(heading: str) -> str:
    """Return a part of the README, with its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    found = {"start": start.partition("\n")[2]} | {part.partition("\n")[0]: f"## {part}" for part in sections}
    if heading not in found:
        log.warning("README.md has no section %r", heading)
        return ""
    return _TO_DOCS.sub(r"](\1)", found[heading])


def _fields(path: str, page: str) -> str:
    """Return the fields of a section; classes that the page of a run's configuration describes are linked to."""
    run = Fields()
    text = run.describe(_section(CONFIGURATION), 2)
    fields = run
    if path != CONFIGURATION:
        fields = Fields(prefix=path.rpartition(":")[2])
        fields.places = {each: f"configuration.md{place}" for each, place in run.places.items()}
        text = fields.describe(_section(path), 3)
    for missing in fields.without_meaning:
        log.warning("%s: field %s has no docstring", page, missing)
    return text


def _section(path: str) -> type[Section]:
    module, _, name = path.partition(":")
    section: type[Section] = getattr(import_module(module), name)
    return section


def _reference() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (title, page, modules) of each folder of the code, the package itself first among its modules."""
    for package in ("optune_core", "tasks", "flows"):
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            title = ".".join(folder.relative_to(ROOT).parts)
            modules = [f"{title}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
            yield title, f"reference/{title}.md", [title, *modules]
