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
            entries.append(f"- {_link(entry[1], found)}: {entry[2]}")
        elif entries and line.startswith("  "):
            entries[-1] += f" {line.strip()}"
        else:
            return None
    return "\n".join(entries)


def _link(name: str, found: Object) -> str:
    """Return the name of a member as a link to it; a folder has a page of its own, every other member a heading."""
    if name not in found.members:
        return f"`{name}`"
    target = f"{found.path}.{name}"
    member = found.members[name]
    is_folder = isinstance(member, Module) and member.is_init_module
    return f"[`{name}`]({target}.md)" if is_folder else f"[`{name}`][{target}]"
