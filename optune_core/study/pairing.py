"""Which pairs a study asks about. Every prompt of a comparison has an outcome; nothing is left out without one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optune_core.study.sources import Answer, Source

ASKED = "asked"


@dataclass(frozen=True)
class Pair:
    """What a participant compares."""

    number: int
    policy: str
    baseline: str
    prompt_id: str
    prompt: str
    policy_response: str
    baseline_response: str


def comparisons(sources: Sequence[Source], baseline: str | None) -> list[tuple[Source, Source]]:
    """(policy, baseline) of each comparison: the first source against each other one, as in the paper, or each other
    one against the named baseline."""
    if baseline is None:
        return [(sources[0], other) for other in sources[1:]]
    (base,) = (source for source in sources if source.name == baseline)
    return [(source, base) for source in sources if source is not base]


def pair_up(compared: Sequence[tuple[Source, Source]], prompts: int, seed: str) -> list[dict[str, Any]]:
    """Rows of the study's table, comparison after comparison.

    The same order of prompts, which only the seed decides, is drawn from in each comparison: so they ask about the
    same prompts as far as these can be asked about in both.

    Args:
        compared: (policy, baseline) of each comparison.
        prompts: pairs a comparison, at most.
        seed: of the order.

    Returns:
        One row a prompt that either side has, in the schema STUDY_PAIRS. `outcome` is `asked`; `not_drawn`: there
        were enough; or why it cannot be asked: `missing`: one side has not answered it; `empty`: a response without
        text; `identical`: nothing to choose between.
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


def asked_pairs(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """The pairs that are asked about, by number."""
    asked = [{"number": row["pair"]} | row for row in rows if row["outcome"] == ASKED]
    return [Pair(**{name: row[name] for name in Pair.__dataclass_fields__}) for row in asked]


def _outcome(ours: Answer | None, theirs: Answer | None) -> str:
    if ours is None or theirs is None:
        return "missing"
    first, second = ours.response.strip(), theirs.response.strip()
    if not first or not second:
        return "empty"
    return "identical" if first == second else ASKED


def _rank(seed: str, prompt_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/study/{prompt_id}".encode()).digest()
