"""Which prompts are regenerated in an iteration: Algorithm 1's ranking, its baselines, and rankings beyond the paper.

A selector is one function in one file: it gives every prompt a sort value, and the N lowest are taken. Ties, and
prompts without a stored pair, never depend on the order of a file.
"""

from optune_core.selection.registry import SELECTORS, columns_of
from optune_core.selection.rows import select, select_rows, selection_size

__all__ = ["SELECTORS", "columns_of", "select", "select_rows", "selection_size"]
