"""Make the preference files of the reproduction (docs/reproduction.md) from two public data sets.

    python -m configs.reproduction.prepare GPT4_PREFERENCES PANDALM [--out FOLDER]

GPT4_PREFERENCES contains GPT-4's preferences on AlpacaEval as JSON lines with `prompt, chosen, rejected` (gzipped or
not), PANDALM is PandaLM's human test set (testset-v1.json). Neither is shipped: AlpacaEval's are CC BY-NC 4.0.

    proxy-balanced.jsonl, proxy-all.jsonl    pairs of 40 % of GPT-4's prompts: for the reward that is optimised
    judge-balanced.jsonl                     pairs of another 40 %: for the reward that judges and is never optimised
    test.jsonl                               pairs of the other prompts, not balanced, to test both rewards
    pandalm.jsonl                            pairs on which at least two of PandaLM's three annotators agree

Balanced: among pairs of similar length ratio the longer response wins as often as the shorter one, and no response is
longer than 600 characters, since the policy's are not either.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

PreferencePair = dict[str, str]
"""Texts `prompt`, `chosen` and `rejected`."""

LONGEST = 600
"""Largest number of characters of a response in the balanced files."""
MOST = 1200
"""Number of pairs in proxy-all.jsonl."""


def place(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def order(pair: PreferencePair) -> float:
    """Return the sort key of a pair, in [0, 1): a hash of its texts."""
    return place("\0".join([pair["prompt"], pair["chosen"], pair["rejected"]]))


def split(pairs: Iterable[PreferencePair]) -> dict[str, list[PreferencePair]]:
    """Split pairs by prompt into those of the proxy, the judge and the test, each in a pseudo-random order."""
    parts: dict[str, list[PreferencePair]] = {"proxy": [], "judge": [], "test": []}
    for pair in sorted(pairs, key=order):
        share = place(pair["prompt"])
        parts["proxy" if share < 0.4 else "judge" if share < 0.8 else "test"].append(pair)
    return parts


def balanced(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Select pairs so that length decides nothing: in each range of length ratios, the longer response wins as often as
    the shorter one."""
    bins: defaultdict[int, tuple[list[PreferencePair], list[PreferencePair]]] = defaultdict(lambda: ([], []))
    for pair in pairs:
        if max(len(pair["chosen"]), len(pair["rejected"])) <= LONGEST:
            ratio = math.log2(len(pair["chosen"]) / len(pair["rejected"]))
            bins[round(2 * abs(ratio))][ratio > 0].append(pair)
    return [pair for shorter, longer in bins.values() for both in zip(shorter, longer, strict=False) for pair in both]


def decided(rows: Iterable[dict[str, object]]) -> list[PreferencePair]:
    """Select PandaLM's pairs in which at least two annotators prefer the same response."""
    pairs = []
    for row in rows:
        (winner, votes), *_ = Counter(row[f"annotator{number}"] for number in (1, 2, 3)).most_common(1)
        if winner in (1, 2) and votes >= 2 and row["response1"] and row["response2"]:
            prompt = "\n\n".join(str(part) for part in (row["instruction"], row["input"]) if part)
            chosen, rejected = str(row[f"response{winner}"]), str(row[f"response{3 - int(winner)}"])
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read pairs from JSON lines, gzipped or not. Pairs with an empty text or equal responses are left out."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.splitlines()]
    pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    return [pair for pair in pairs if all(pair.values()) and pair["chosen"] != pair["rejected"]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the preference files of the reproduction.")
    parser.add_argument("preferences", type=Path, help="GPT-4's preferences: prompt, chosen, rejected")
    parser.add_argument("pandalm", type=Path, help="PandaLM's testset-v1.json")
    parser.add_argument("--out", type=Path, default=Path(".optune/reproduction"))
    arguments = parser.parse_args()

    parts = split(read_pairs(arguments.preferences))
    files = {
        "proxy-balanced": balanced(parts["proxy"]),
        "proxy-all": parts["proxy"][:MOST],
        "judge-balanced": balanced(parts["judge"]),
        "test": parts["test"][: MOST // 4],
        "pandalm": decided(json.loads(arguments.pandalm.read_text(encoding="utf-8"))),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in files.items():
        path = arguments.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        longer = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs) / len(pairs)
        prompts = len({pair["prompt"] for pair in pairs})
        print(f"{path}: {len(pairs)} pairs of {prompts} prompts, the longer response wins {longer:.0%}")


if __name__ == "__main__":
    main()
