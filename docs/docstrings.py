"""Aligned lists in docstrings, a name and a phrase a line, as Markdown lists."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Module, Object

_ENTRY = re.compile(r"^(\S+(?: \S+)*) {2,}(\S.*)$")


class AlignedLists(Extension):
    """Rewrite them in all docstrings of a package when it has been read."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(found: Object) -> None:
    if found.docstring is not None:
        paragraphs = found.docstring.value.split("\n\n")
        found.docstring.value = "\n\n".join(_as_list(paragraph, found) or paragraph for paragraph in paragraphs)
    for member in found.members.values():
        if isinstance(member, Object):
            _rewrite(member)


def _as_list(paragraph: str, found: Object) -> str | None:
    """Return the paragraph as a list; None where not every line is an entry or goes on with one."""
    entries: list[str] = []
    for line in paragraph.splitlines():
        if entry := _ENTRY.match(line):
            place = f"[`{entry[1]}`][{found.path}.{entry[1]}]" if entry[1] in found.members else f"`{entry[1]}`"
            entries.append(f"- {place}: {entry[2]}")
        elif entries and line.startswith("  "):
            entries[-1] += f" {line.strip()}"
        else:
            return None
    return "\n".join(entries)
