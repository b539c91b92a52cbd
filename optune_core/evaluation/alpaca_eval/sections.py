"""Sections of AlpacaEval 2: the instructions with their reference outputs, and the annotator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optune_core.evaluation.endpoint import Endpoint
from optune_core.evaluation.prompts import DrawnPrompts


class Instructions(DrawnPrompts):
    """Rows of an instruction and of the output that a policy's is compared with, in the order of the calibration."""

    type: Literal["drawn"] = "drawn"
    column: str = "instruction"
    """Column of the instructions: text."""
    output: str = "output"
    """Column of the reference outputs: text."""
    generator: str = "generator"
    """Column that names their writer, for people; it may be missing."""
    max_tokens: int = Field(default=2048, ge=1)
    too_long: Literal["drop", "error"] = "error"


class Annotator(Endpoint):
    """An annotator of the library alpaca-eval, behind an OpenAI-compatible endpoint. The model is named in the
    annotator's own file."""

    config: str = "weighted_alpaca_eval_gpt4_turbo"
    """Name of one of the library's annotators, or a folder with a `configs.yaml` in their form."""
