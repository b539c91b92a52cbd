"""Pairs that a study asks about. Every prompt of a comparison has an outcome, so none is dropped silently."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optune_core.study.sources import Answer, AnswerSource

ASKED = "asked"


@dataclass(frozen=True)
class StudyPair:
    """A prompt with the two responses that a participant compares."""

    number: int
    """Number of the pair in the study, from 0."""
    policy: str
    baseline: str
    prompt_id: str
    prompt: str
    policy_response: str
    baseline_response: str


def comparisons(sources: Sequence[AnswerSource], baseline: str | None) -> list[tuple[AnswerSource, AnswerSource]]:
    """Return (policy, baseline) of each comparison.

    Args:
        sources: two or three sources.
        baseline: name of the source that each of the others is compared with; None: the first source is the policy
            and each of the others a baseline, as in the paper.
    """
    if baseline is None:
        return [(sources[0], other) for other in sources[1:]]
    (base,) = (source for source in sources if source.name == baseline)
    return [(source, base) for source in sources if source is not base]


def pair_up(compared: Sequence[tuple[AnswerSource, AnswerSource]], prompts: int, seed: str) -> list[dict[str, Any]]:
    """Make the rows of the study's table, comparison after comparison.

    All comparisons draw from the same order of prompts, which only the seed decides. So they ask about the same
    prompts, as far as these can be asked about in each.

    Args:
        compared: (policy, baseline) of each comparison.
        prompts: largest number of pairs per comparison.
        seed: seed of the order.

    Returns:
        Rows of schema STUDY_PAIRS, one per prompt that either side has. `outcome` is `asked`, `not_drawn` if there were
        enough pairs before it, or the reason why the prompt cannot be asked about: `missing` (one side has no response
        to it), `empty` (a response has no text), `identical` (the responses do not differ).
    """
    rows: list[dict[str, Any]] = []
    number = 0
    for policy, baseline in compared:
        asked = 0
        for prompt_id in sorted({*policy.answers, *baseline.answers}, key=lambda name: _rank(seed, name)):
            ours, theirs = policy.answers.get(prompt_id), baseline.answers.get(prompt_id)
            outcome = _outcome(ours, theirs)
            if outcome == ASKED and asked == prompts:
                outcome = "not_drawn"
            either = ours or theirs
            assert either is not None
            row = {
                "pair": number if outcome == ASKED else None,
                "policy": policy.name,
                "baseline": baseline.name,
                "prompt_id": prompt_id,
                "prompt": either.prompt,
                "policy_response": ours.response.strip() if ours else None,
                "baseline_response": theirs.response.strip() if theirs else None,
                "outcome": outcome,
            }
            rows.append(row)
            asked += outcome == ASKED
            number += outcome == ASKED
    return rows


def asked_pairs(rows: Sequence[dict[str, Any]]) -> list[StudyPair]:
    """Return the pairs of the rows whose outcome is `asked`, in the order of their numbers."""
    asked = [{"number": row["pair"]} | row for row in rows if row["outcome"] == ASKED]
    return [StudyPair(**{name: row[name] for name in StudyPair.__dataclass_fields__}) for row in asked]


def _outcome(ours: Answer | None, theirs: Answer | None) -> str:
    if ours is None or theirs is None:
        return "missing"
    first, second = ours.response.strip(), theirs.response.strip()
    if not first or not second:
        return "empty"
    return "identical" if first == second else ASKED


def _rank(seed: str, prompt_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/study/{prompt_id}".encode()).digest()
