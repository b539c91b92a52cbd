"""Where the time of an iteration went, in seconds of the clock on the wall, from the manifests of its artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optune_core.storage import Manifest

Span = tuple[float, float]
"""Begin and end, Unix time in seconds."""


def stage_timing(
    generated: Sequence[Manifest],
    scored: Sequence[Manifest],
    selection: Manifest,
    replay: Manifest,
    policy: Manifest,
) -> dict[str, float]:
    """Seconds by stage.

    With several engines side by side, `generate` is the time in which at least one of them generated, `start engine`
    the time in which one started and none generated yet, and `score` the time in which at least one reward model
    scored: so a pause between an interruption and the next start does not count, and what several did at once counts
    once. Spans are those of the clock of the machine that worked: exact on one machine, as far as nobody sets its
    clock meanwhile. What the engines generated for held-out prompts is left out, as far as nothing else was generated
    at the same time. The loading of reward models is not timed.

    Args:
        generated: shards of responses to the selected prompts; none where nothing was generated.
        scored: their scores.
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
    """Seconds that lie in at least one of the spans."""
    seconds, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


def _span(shard: Manifest) -> Span:
    # Manifests of before this was noted say when the shard was committed, which was soon after.
    end = shard.timing.get("ended_at", shard.committed_at)
    return end - shard.timing["seconds"], end
