"""Small pictures of an iteration as PNG data URLs. Colours work on light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from optune_core.replay import trainable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHOSEN, _REJECTED, _NEUTRAL = "#1b7f79", "#d1495b", "#5b6c8f"


def reward_picture(replay: pa.Table) -> str:
    """Histograms of the chosen and rejected rewards of a replay set (columns *_reward, generated_at)."""
    pairs = trainable(replay)

    def draw(axes: Axes) -> None:
        for side, colour in (("chosen", _CHOSEN), ("rejected", _REJECTED)):
            axes.hist(pairs[f"{side}_reward"].to_numpy(), bins=30, alpha=0.6, color=colour, label=side)
        axes.set_xlabel("reward of the reward model")
        axes.set_ylabel("prompts")
        axes.legend(frameon=False)

    return _picture("Rewards in the replay set", draw)


def age_picture(replay: pa.Table, iteration: int) -> str:
    """How many pairs were sampled in which iteration (column generated_at)."""
    made = {entry["values"]: entry["counts"] for entry in pc.value_counts(replay["generated_at"]).to_pylist()}

    def draw(axes: Axes) -> None:
        axes.bar(range(iteration + 1), [made.get(t, 0) for t in range(iteration + 1)], color=_NEUTRAL)
        axes.set_xticks(range(iteration + 1))
        axes.set_xlabel("iteration in which the pair was sampled")
        axes.set_ylabel("prompts")

    return _picture("Age of the pairs", draw)


def stage_picture(seconds: dict[str, float]) -> str:
    """Seconds a stage, as in Table 1."""

    def draw(axes: Axes) -> None:
        bars = axes.barh(list(seconds), list(seconds.values()), color=_NEUTRAL)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.margins(x=0.15)

    return _picture("Time of the stages", draw)


def _picture(title: str, draw: Callable[[Axes], None]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
