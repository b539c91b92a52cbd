"""Fake of AlpacaEval's GPT-4 Turbo: a small server that replies with log-probabilities of the tokens m and M."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tests.fake_judge import FakeJudge

KEY = "a-long-enough-key-of-nobody"

_ASKED = re.compile(
    r'\s*I require a leaderboard.*"instruction": """(.*)""",\n.*'
    r'"model_identifier": "m",\n\s+"output": """(.*)"""\n.*'
    r'"model_identifier": "M",\n\s+"output": """(.*)"""\n.*## Best Model Identifier',
    re.DOTALL,
)


class FakeAnnotator(FakeJudge):
    """A judge whose replies are JSON of tokens and their log-probabilities."""

    prompt = _ASKED

    def choice(self, text: str) -> dict[str, Any]:
        logprobs = [{"token": token, "bytes": None, "logprob": value} for token, value in json.loads(text).items()]
        best = max(logprobs, key=lambda each: each["logprob"])
        return {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": best["token"]},
            "logprobs": {"content": [best | {"top_logprobs": logprobs}]},
        }


def prefer(first: float) -> str:
    """Return the reply that prefers the output of `m`, the first one, with this probability in (0, 1)."""
    return json.dumps({"m": math.log(first), "M": math.log(1 - first)})


def longer(instruction: str, first: str, second: str) -> str:
    """Prefer the longer output, whatever it says."""
    return prefer(1 / (1 + math.exp((len(second) - len(first)) / 20)))
