"""Reward functions of tests. Their values differ often enough that a policy with random weights yields pairs."""

from __future__ import annotations


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """Reward the share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) + 0.001 * (len(text) % 7) for text in responses]


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """Reward short responses."""
    return [-float(len(text)) for text in responses]


def too_few(prompts: list[str], responses: list[str]) -> list[float]:
    """Return too few rewards, against the contract."""
    return [0.0]


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """Return no finite reward."""
    return [float("nan") for _ in responses]
