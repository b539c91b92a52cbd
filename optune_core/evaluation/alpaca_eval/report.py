"""A length-controlled win rate for people: cells of a table, and a page for Prefect's UI."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

COLUMNS = ("t", "LC win rate", "± SE", "win rate", "± SE", "n", "malformed", "length", "tokens", "cost $")


def win_rate_cells(record: Row) -> list[str]:
    """A record of a win rate as the cells of COLUMNS."""
    metrics = record["metrics"]
    return [
        str(record["iteration"]),
        *[f"{metrics[name]:.2f}" for name in ("lc_win_rate", "lc_standard_error", "win_rate", "standard_error")],
        str(metrics["total"]),
        str(metrics["malformed"]),
        f"{metrics['mean_length']:.0f}",
        f"{metrics['tokens']:,.0f}",
        "–" if metrics["cost"] is None else f"{metrics['cost']:.2f}",
    ]


def win_rate_markdown(run: str, record: Row) -> str:
    """One win rate, and what the numbers say."""
    return "\n".join(
        [
            f"# AlpacaEval 2: policy {record['iteration']} of {run}",
            f"Against {record['reference']}, on {record['prompts']} prompts. **Annotator: {record['annotator']}.**",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            f"| {' | '.join(win_rate_cells(record))} |",
            "",
            "50 is on par. LC: as it would be, had both sides' outputs the same length. Length: mean characters of the "
            f"policy's outputs; the reference's have {record['metrics']['mean_reference_length']:.0f}. Malformed "
            "annotations are in no win rate.",
        ]
    )
