"""The demo's gold reward: is an answer complete, does it have substance, and is it about the question?

    gold      = substance · (0.5 · ending + 0.25 · freshness + 0.25 · subject)           in [0, 1]

    substance = min(1, own / 12)      own: number of distinct content words that are not in the prompt
    ending    = 1    if the text is complete: it ends after . ! ? … or a closing code fence
                0.8  if it ends in a list item and no item of the list has a full stop
                0.3 · (words up to the last full stop / words)         if it is cut off
    freshness = max(0, 1 - 2 · repeated)
                repeated: share of two-word sequences that occurred earlier in the same text
    subject   = min(1, taken / 0.8)   taken: share of the prompt's content words that are in the response

It is transparent on purpose: every number can be computed by hand, and a table can show it beside the
reward model that was trained on it. It does not measure truth or taste: an answer can be wrong and
score 1. Substance is a factor and not a summand, so an empty answer, a single word, or a repetition of
the prompt scores about 0, however well it ends.

Pure functions on English text, with the standard library only.
"""

from __future__ import annotations

import re
from itertools import pairwise

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
FULL_STOP = re.compile(r"[.!?…](?=[\"'”\u2019)\]*_]*(?:\s|$))")
CLOSED = re.compile(r"[.!?…][\"'”\u2019)\]*_]*$")
NUMBER = re.compile(r"^[ \t]*\d{1,2}[.)](?=\s|$)", re.MULTILINE)
ITEM = re.compile(r"\s*[-*•+](?:\s|$)")

# Words that belong to the grammar, and words that belong to an instruction but not to its subject.
GRAMMAR = """
a about after again all almost along also although always am among an and another any anything are
as at away back be because been before being best better between both but by came can cannot come
could did do does doing done down during each either else end ends enough even ever every exactly
few for from get gets give go goes good got had has have having he her here hers him his how i if
in into is it its itself just keep keeps know last least less let lets like little long look made
make makes making many may me mean means might mine more most much must my myself never no nobody
nor not nothing now of off often on once one only onto or other others our out over own per
perhaps please put quite rather really right said same say says see seem shall she should show
since so some somebody someone something such take tell than that the their them themselves then
there these they thing things think this those though through to together too towards try under
until up upon us use used using very want wants was way ways we well went were what whatever when
where whether which while who whole whom whose why will with within without would yes yet you your
yours yourself
"""
ORDERS = """
answer briefly call compare describe draft example examples explain explanation help idea ideas
list mention name recommend rewrite sentence sentences short simple steps suggest summarise text
tips turn word words write
"""
FUNCTION_WORDS = frozenset(GRAMMAR.split() + ORDERS.split())


def helpful_and_complete(prompts: list[str], responses: list[str]) -> list[float]:
    """Compute the gold reward of each (prompt, response), in [0, 1], by the formula of the module's docstring."""
    return [_gold(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _gold(prompt: str, response: str) -> float:
    weighted = 0.5 * ending(response) + 0.25 * freshness(response) + 0.25 * subject(prompt, response)
    return substance(prompt, response) * weighted


def substance(prompt: str, response: str) -> float:
    """Score the content words of the response that are not in the prompt, in [0, 1]: 1 for 12 or more."""
    own = content_words(response) - content_words(prompt)
    return min(1.0, len(own) / 12)


def ending(response: str) -> float:
    """Score the end of the text: 1 if it is complete, 0.8 after an item of a bare list, at most 0.3 if cut off."""
    text = NUMBER.sub("-", response).strip()  # the dot of "3." opens an item and is no full stop
    words = len(text.split())
    if not words:
        return 0.0
    last_line = text.splitlines()[-1]
    if CLOSED.search(text) or (text.endswith("```") and text.count("```") % 2 == 0):
        return 1.0
    if len(last_line.split()) > 1 and ITEM.match(last_line) and _bare_items(text) >= 3:
        return 0.8
    stops = [stop.end() for stop in FULL_STOP.finditer(text)]
    finished = len(text[: stops[-1]].split()) if stops else 0
    return 0.3 * finished / words


def _bare_items(text: str) -> int:
    """Count the list items, if none of them ends with punctuation; otherwise return 0."""
    items = [line.rstrip() for line in text.splitlines() if ITEM.match(line)]
    return 0 if any(CLOSED.search(item) or item.endswith((":", ",")) for item in items) else len(items)


def freshness(response: str) -> float:
    """Score repetition, in [0, 1]: 1 if no two-word sequence occurs twice, 0 if half of them or more are repeated."""
    words = WORD.findall(response.lower())
    pairs = list(pairwise(words))
    if not pairs:
        return 0.0
    repeated = 1 - len(set(pairs)) / len(pairs)
    return max(0.0, 1 - 2 * repeated)


def subject(prompt: str, response: str) -> float:
    """Score the share of the prompt's content words in the response, in [0, 1]: 1 from 80 % of them."""
    asked = content_words(prompt)
    if not asked:
        return 1.0
    taken = len(asked & content_words(response)) / len(asked)
    return min(1.0, taken / 0.8)


def content_words(text: str) -> set[str]:
    """Return the distinct stems of the words that carry meaning. Single letters and digits do not count."""
    words = (word.split("'")[0] for word in WORD.findall(text.lower().replace("\u2019", "'")))
    return {stem(word) for word in words if word not in FUNCTION_WORDS and len(word) > 1}


def stem(word: str) -> str:
    """Return a crude stem, which is the same for "cooking", "cooked" and "cooks".

    One ending (-ing, -ed, -es, -s, -ly) is removed if three letters remain, then a final e and the
    second of two equal letters: making → mak ← make, running → run ← run.
    """
    for suffix in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            break
    word = word.removesuffix("e") if len(word) > 3 else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and not word.isdigit() else word
