"""Reward functions of the tests: dense, so that pairs are found at random weights."""

from __future__ import annotations


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """Share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) + 0.001 * (len(text) % 7) for text in responses]


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """Shorter is better."""
    return [-float(len(text)) for text in responses]


def too_few(prompts: list[str], responses: list[str]) -> list[float]:
    """Breaks the contract."""
    return [0.0]


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """Fails on every response."""
    return [float("nan") for _ in responses]
