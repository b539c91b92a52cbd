"""Reward functions of tests. Their values differ often enough that a policy with random weights yields pairs."""

from __future__ import annotations


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the share of vowels, and a little for the length."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) + 0.001 * (len(text) % 7) for text in responses]


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the negative length, so that shorter is better."""
    return [-float(len(text)) for text in responses]


def too_few(prompts: list[str], responses: list[str]) -> list[float]:
    """Return one score for all responses, which breaks the contract."""
    return [0.0]


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """Return NaN for every response, as a reward that fails does."""
    return [float("nan") for _ in responses]
