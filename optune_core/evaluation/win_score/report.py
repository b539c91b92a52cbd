"""A win score for people: cells of a table, and a page with examples for Prefect's UI."""

from __future__ import annotations

import re
from typing import Any

from optune_core.data.schemas import COMPARISONS
from optune_core.data.shards import read_shards
from optune_core.storage import ArtifactStore

Row = dict[str, Any]

COLUMNS = ("t", "win score", "95 % interval", "wins", "ties", "losses", "malformed", "tokens", "cost")
_EXAMPLES = 2
"""Of each outcome."""
_SHOWN = 800
"""Characters of a text."""


def comparison_cells(record: Row) -> list[str]:
    """A comparison record as the cells of COLUMNS."""
    metrics = record["metrics"]
    tokens = metrics["prompt_tokens"] + metrics["completion_tokens"]
    return [
        str(record["iteration"]),
        f"{metrics['win_score']:.1f}",
        f"[{metrics['low']:.1f}, {metrics['high']:.1f}]",
        *[str(metrics[name]) for name in ("wins", "ties", "losses", "malformed")],
        f"{tokens:,}" if metrics["requests"] else "–",
        "–" if metrics["cost"] is None else f"{metrics['cost']:.2f}",
    ]


def comparison_markdown(store: ArtifactStore, run: str, record: Row) -> str:
    """One comparison with examples of each outcome."""
    lines = [
        f"# Win score: policy {record['iteration']} of {run}",
        f"Against {record['baseline']}, on {record['prompts']} prompts. **Judge: {record['judge']}.**",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        f"| {' | '.join(comparison_cells(record))} |",
        "",
        "50 is on par; 50 + 100 · (wins - losses) / judged prompts (Eq. 7). Malformed judgements count nowhere.",
    ]
    rows = read_shards(store, record["comparisons"], "comparisons.parquet", COMPARISONS).to_pylist()
    for outcome in ("win", "lose", "malformed"):
        for row in [row for row in rows if row["outcome"] == outcome][:_EXAMPLES]:
            said = row["reason"] or row["first_explanation"]
            texts = {"prompt": row["prompt"], "policy": row["policy_response"], "baseline": row["baseline_response"]}
            lines += ["", f"## {outcome}"]
            for name, text in (texts | ({"judge": said} if said else {})).items():
                lines += [f"**{name}**", *_quoted(text), ""]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """A model's text as it is, not as Markdown: between fences that it does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence, text[:_SHOWN] + ("…" if len(text) > _SHOWN else ""), fence]
