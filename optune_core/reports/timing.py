"""The time of an iteration by stage, in seconds of wall-clock time, from the manifests of its artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optune_core.storage import Manifest

Span = tuple[float, float]
"""Begin and end: Unix times in seconds."""


def stage_timing(
    generated: Sequence[Manifest],
    scored: Sequence[Manifest],
    selection: Manifest,
    replay: Manifest,
    policy: Manifest,
) -> dict[str, float]:
    """Return the seconds by stage.

    With several engines side by side, `generate` is the time in which at least one of them generated, `start engine`
    the time in which one started and none generated yet, and `score` the time in which at least one reward model
    scored. So a pause between an interruption and the next start does not count, and simultaneous work counts once.
    Spans are measured by the clock of the machine that did the work: they are exact on one machine unless its clock is
    set in between. The time of held-out prompts is left out, unless other prompts were generated at the same time.
    The loading of reward models is not timed.

    Args:
        generated: shards of responses to the selected prompts; none where nothing was generated.
        scored: shards of their scores.
    """
    generation = [_span(shard) for shard in generated]
    starts = [
        (begin - shard.timing["engine_start_seconds"], begin)
        for shard, (begin, _) in zip(generated, generation, strict=True)
    ]
    generating = covered(generation)
    return {
        "start engine": max(0.0, covered([*starts, *generation]) - generating),
        "generate": generating,
        "score": covered(_span(shard) for shard in scored),
        "rank and merge": selection.timing["seconds"] + replay.timing["seconds"],
        "train": policy.timing["seconds"] + policy.timing["reference_seconds"],
    }


def covered(spans: Iterable[Span]) -> float:
    """Return the seconds that lie in at least one of the spans."""
    seconds, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


def _span(shard: Manifest) -> Span:
    # Manifests of the first versions lack the end of the work; the commit followed soon after it.
    end = shard.timing.get("ended_at", shard.committed_at)
    return end - shard.timing["seconds"], end
