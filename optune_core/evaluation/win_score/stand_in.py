"""A reward in a judge's place. Each answer is scored once; the verdicts in both orders of a pair follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

from optune_core.evaluation.win_score.judge import Pair, Rating
from optune_core.rewards import Conversation, Scorer

_PAIRS = 256
"""Pairs that are scored together."""


class StandInJudge:
    """Rates by a reward model or a reward function."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._rewards: dict[tuple[str, str], float] = {}

    def rate(self, pairs: Iterable[Pair]) -> Iterator[Rating]:
        waiting = iter(pairs)
        while together := list(islice(waiting, _PAIRS)):
            yield from self._rate(together)

    def _rate(self, pairs: list[Pair]) -> Iterator[Rating]:
        answers: dict[tuple[str, str], Conversation] = {}
        for pair in pairs:
            for answer in pair.answers:
                if (pair.prompt, answer) not in self._rewards:
                    answers[pair.prompt, answer] = Conversation(pair.prompt, pair.messages, answer)
        scores = self._scorer.score(list(answers.values()), lambda done: None)
        self._rewards |= zip(answers, scores, strict=True)
        for pair in pairs:
            first, second = (self._rewards[pair.prompt, answer] for answer in pair.answers)
            if math.isfinite(first) and math.isfinite(second):
                yield Rating(pair.index, (first, second), "")
            else:
                yield Rating(pair.index, None, "", f"rewards {first} and {second} are not both finite")
