"""Markdown pages for Prefect's UI. It shows no inline SVG, but SVG files as data images."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from optune_core.data.schemas import REPLAY, only, read_table
from optune_core.replay import trainable
from optune_core.reports.analysis import made_counts
from optune_core.reports.facts import Record
from optune_core.reports.figures import age_chart, reward_chart, time_chart
from optune_core.reports.picture import data_image, picture
from optune_core.reports.summary import savings
from optune_core.storage import ArtifactStore
from optune_core.words import markdown_table, number, percent


def iteration_markdown(store: ArtifactStore, run: str, record: Record) -> str:
    """Return an iteration's page: counts, rewards, training, time, and three pictures."""
    t, metrics, timing = record["iteration"], record["metrics"], record["timing"]
    replay_metrics, policy = metrics["replay"], metrics["policy"]
    file = store.fetch(record["artifacts"]["replay"]) / "replay.parquet"
    replay = read_table(file, only(REPLAY, "chosen_reward", "rejected_reward", "generated_at"))
    saved = savings(record)
    counts = ", ".join(f"{count} {status}" for status, count in replay_metrics["status"].items())
    reasons = ", ".join(f"{count} {reason}" for reason, count in replay_metrics["reasons"].items()) or "none"
    parts = [
        f"# {run}: iteration {t}",
        f"**{replay_metrics['prompts']} prompts** = {counts}. Dropped prompts by reason: {reasons}.",
        markdown_table(
            ["replay set", "chosen", "rejected", "margin"],
            [
                ["reward (rm)", *[number(replay_metrics[f"rm/{name}"]) for name in ("chosen", "rejected", "margins")]],
                ["tokens", *[number(replay_metrics[f"tokens/{side}"], 1) for side in ("chosen", "rejected")], ""],
            ],
        ),
        f"Reward gain of regenerated prompts: {number(replay_metrics['gain/mean'])}, of which the bottom half brings "
        f"{percent(replay_metrics['gain/bottom_half_share'])}. Correlation of reward and length: "
        f"{number(replay_metrics['reward_length_correlation'])}. Mean age of the pairs: "
        f"{number(replay_metrics['age/mean'])} iterations.",
        markdown_table(
            ["training", "first step", "last step"],
            [
                [name, number(policy["first"].get(name), 4), number(policy["last"].get(name), 4)]
                for name in ("loss", "rewards/margins", "rewards/accuracies", "weights/mean", "grad_norm")
            ],
        ),
        markdown_table(["stage", "seconds"], [[stage, number(seconds, 1)] for stage, seconds in timing.items()]),
        f"Speed-up over regenerating every prompt: **{number(saved['speedup'], 2)}×** "
        f"(bound {number(saved['bound'], 2)}×).",
        *_pictures(t, replay, timing),
    ]
    return "\n\n".join(parts)


def _pictures(t: int, replay: pa.Table, timing: Mapping[str, float]) -> list[str]:
    pairs = trainable(replay)
    rewards = pairs["chosen_reward"].to_numpy(), pairs["rejected_reward"].to_numpy()
    charts = {
        "rewards": reward_chart({t: rewards}),
        "ages": age_chart({t: made_counts(pairs)}),
        "stages": time_chart({t: timing}),
    }
    return [f"![{name}]({data_image(picture(chart.title, {'': chart}))})" for name, chart in charts.items()]


def run_markdown(summary: Record, page: str) -> str:
    """Return a run's page: its table, and where its report lies."""
    rows = [
        [
            str(row["iteration"]),
            str(row["regenerated"]),
            str(row["reused"]),
            change_text(row.get("proxy")),
            change_text(row.get("gold")),
            number(sum(row["seconds"].values()), 0),
            number(row["speedup"], 2),
        ]
        for row in summary["iterations"]
    ]
    header = ["iteration", "regenerated", "reused", "held-out proxy", "held-out gold", "seconds", "speed-up"]
    overall = summary["overall"]
    parts = [
        f"# {summary['run']}",
        markdown_table(header, rows),
        "\n".join(f"**{reward}, π₀ → π_{len(rows)}**: {change_text(overall[reward])}" for reward in overall),
        f"Policy `{summary['policy'].key}`, replay set `{summary['replay'].key}`.",
        f"Full report: `{page}` (`optune report {summary['run']}` writes a current one).",
    ]
    return "\n\n".join(parts)


def reward_model_markdown(metrics: Record) -> str:
    """Return a reward model's page: its accuracies."""
    rows = [
        [f"held-out prompts ({metrics['held_out_pairs']} pairs)", number(metrics["accuracy/held_out"])],
        ["length only, same pairs", number(metrics["accuracy/length_only"])],
    ]
    parts = [
        "# Bradley-Terry reward model",
        markdown_table(["accuracy", ""], rows),
        f"Trained on {metrics['pairs']} pairs of other prompts; {metrics['too_long_pairs']} pairs were too long.",
    ]
    return "\n\n".join(parts)


def change_text(change: Record | None) -> str:
    """Write `before → after (difference [95 % interval])`."""
    if change is None or change["difference"] is None:
        return "–"
    return (
        f"{change['before']:.3f} → {change['after']:.3f} "
        f"({change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}])"
    )
