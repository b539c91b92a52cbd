"""Judged pairs of a win score for people."""

from __future__ import annotations

import re

from optune_core.data.schemas import COMPARISONS
from optune_core.data.shards import read_shards
from optune_core.evaluation.win_score.comparisons import FILE
from optune_core.storage import ArtifactStore, Ref

_EXAMPLES = 2
"""Pairs that are shown of each outcome."""
_SHOWN = 800
"""Characters that are shown of a text."""


def examples(store: ArtifactStore, shards: list[Ref]) -> list[str]:
    """Return Markdown of some pairs of each outcome.

    Args:
        shards: artifacts of the stage `comparisons`.
    """
    lines: list[str] = []
    rows = read_shards(store, shards, FILE, COMPARISONS).to_pylist()
    for outcome in ("win", "lose", "malformed"):
        for row in [row for row in rows if row["outcome"] == outcome][:_EXAMPLES]:
            reason = row["reason"] or row["first_explanation"]
            texts = {"prompt": row["prompt"], "policy": row["policy_response"], "baseline": row["baseline_response"]}
            lines += ["", f"## {outcome}"]
            for name, text in (texts | ({"judge": reason} if reason else {})).items():
                lines += [f"**{name}**", *_quoted(text), ""]
    return lines


def _quoted(text: str) -> list[str]:
    """Return a model's text as it is, not as Markdown: between fences that it does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence, text[:_SHOWN] + ("…" if len(text) > _SHOWN else ""), fence]
