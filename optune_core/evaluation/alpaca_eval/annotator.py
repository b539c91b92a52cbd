"""Annotations by the library alpaca-eval, through our endpoint and with our key."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optune_core.errors import JudgeError, TransientError
from optune_core.evaluation.alpaca_eval.annotator_files import AnnotatorFiles
from optune_core.evaluation.alpaca_eval.sections import Annotator
from optune_core.evaluation.endpoint import api_key, is_final
from optune_core.process.hidden_imports import show_all
from optune_core.secrets import MASK, redact

Row = dict[str, Any]

_TURN_MARKS = ("<|im_start|>", "<|im_end|>")
"""Marks by which the library splits its prompts into messages, wherever they occur."""


@dataclass
class Usage:
    """Requests, tokens and cost of annotations."""

    requests: int = 0
    tokens: float = 0.0
    cost: float = 0.0
    """US dollars, by the library's prices; NaN for a model without one."""


class LibraryAnnotator:
    """Asks through the library, which draws the order of each pair, and reads the replies."""

    def __init__(self, files: AnnotatorFiles, annotator: Annotator, folder: Path) -> None:
        """
        Args:
            folder: an empty one for the definition, as the library reads it from files.

        Raises:
            JudgeError: the variable that holds the key is not set.
        """
        self._asked = annotator
        self._key = api_key(annotator, "annotator")
        self.usage = Usage()
        self.replies: list[Any] = []
        """The replies to the last request for annotations."""
        pairwise = import_library().annotators.PairwiseAnnotator(
            annotators_config=_written(files, folder),
            caching_path=None,  # else the library keeps every annotation beside its own code
            is_avoid_reannotations=False,
        )
        for single in pairwise.annotators.values():
            single.fn_completions = self._counted(single.fn_completions)
        self._pairwise = pairwise

    def annotate(self, rows: list[Row]) -> list[float | None]:
        """Return preferences for pairs.

        Args:
            rows: `instruction`, `output_1`, `output_2`; no two are the same.

        Returns:
            From 1 (`output_1` is better) to 2 (`output_2` is), 1.5 for equal outputs; None where the reply could not be
            read, as often as it was asked for, and where an output holds marks that cut the library's prompt in two.

        Raises:
            JudgeError: the endpoint refuses, and asking again would not change that.
            TransientError: the endpoint failed, and asking again may help.
        """
        import pandas as pd

        preferences: dict[int, float] = {}
        self.replies = []
        for _ in range(self._asked.attempts):
            left = [number for number, row in enumerate(rows) if number not in preferences and not _cuts_prompt(row)]
            if not left:
                break
            self.replies = []
            annotated = self._pairwise(pd.DataFrame([rows[number] for number in left]))
            found = {_pair(each): each.get("preference") for each in annotated}
            for number in left:
                preference = found.get(_pair(rows[number]))
                if preference is not None and math.isfinite(preference):
                    preferences[number] = float(preference)
        return [preferences.get(number) for number in range(len(rows))]

    def _counted(self, complete: Callable[..., dict[str, list[Any]]]) -> Callable[..., dict[str, list[Any]]]:
        """Return the library's completions, asked through our endpoint and added to `usage`, malformed ones too."""

        def counted(prompts: list[str], **how: Any) -> dict[str, list[Any]]:
            completions: dict[str, list[Any]] = self._complete(complete, prompts, how)
            replies = completions["completions_all"]
            self.replies += replies
            self.usage.requests += len(replies)
            self.usage.tokens += sum(reply["total_tokens"] for reply in replies)
            self.usage.cost += sum(completions["price_per_example"])
            if silent := sum(not reply["text"] and not reply["total_tokens"] for reply in replies):
                raise TransientError(
                    f"annotator at {self._asked.base_url} gave no reply to {silent} of {len(replies)} requests: its "
                    "rate limit is met, lower annotator.concurrency; or it refuses these prompts"
                )
            return completions

        return counted

    def _complete(self, complete: Callable[..., dict[str, list[Any]]], prompts: list[str], how: Row) -> Any:
        import openai

        asked = self._asked
        try:
            return complete(
                prompts=prompts,
                **how | {"num_procs": asked.concurrency},
                openai_api_keys=[self._key or "none"],
                openai_organization_ids=None,
                openai_api_base=asked.base_url,
                client_config_path=os.devnull,  # a user's own file would send the prompts elsewhere than we record
                client_kwargs={"timeout": asked.timeout_seconds, "max_retries": asked.retries},
            )
        except openai.APIStatusError as error:
            failure = f"annotator at {asked.base_url}: {self._safe(error)}"
            if is_final(error):
                raise JudgeError(f"{failure}. Look at annotator.config, base_url and api_key_env") from None
            raise TransientError(f"{failure}, {asked.retries + 1} times in a row") from None
        except openai.APIConnectionError as error:
            raise TransientError(f"annotator at {asked.base_url} cannot be reached: {self._safe(error)}") from None

    def _safe(self, error: Exception) -> str:
        text = redact(str(error))
        return text.replace(self._key, MASK) if self._key else text


def _pair(row: Row) -> tuple[str, str, str]:
    return row["instruction"], row["output_1"], row["output_2"]


def _cuts_prompt(row: Row) -> bool:
    return any(mark in text for mark in _TURN_MARKS for text in _pair(row))


def _written(files: AnnotatorFiles, folder: Path) -> Path:
    """Write the definition as the library reads it: a folder whose prompts have paths from the folder's parent."""
    own = folder / files.name
    own.mkdir()
    configs = {}
    for number, (name, each) in enumerate(files.configs.items()):
        template = own / f"prompt-{number}.txt"
        template.write_text(each["prompt_template"], encoding="utf-8")
        configs[name] = each | {"prompt_template": str(template.relative_to(folder))}
    (own / "configs.yaml").write_text(json.dumps(configs), encoding="utf-8")  # JSON is YAML
    return own


def import_library() -> Any:
    """Import alpaca-eval, kept from reading a `.env`, from drawing bars, and from logging requests."""
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    show_all()  # its length control is scikit-learn's
    import alpaca_eval

    logging.getLogger().setLevel(logging.CRITICAL + 1)
    return alpaca_eval
