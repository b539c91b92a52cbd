"""An annotator's definition, found by name or folder without importing the library alpaca-eval."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from optune_core.errors import JudgeError, OptuneError
from optune_core.evaluation.alpaca_eval.sections import Annotator
from optune_core.secrets import secrets_in

_COMPLETIONS = "openai_completions"
_OURS = ("openai_api_keys", "openai_api_base", "openai_organization_ids", "client_config_path", "client_kwargs")
"""Arguments of the library's client that `Annotator` gives instead."""


class AnnotatorFiles(BaseModel):
    """An annotator's complete definition, without the place where it was found."""

    name: str
    configs: dict[str, dict[str, Any]]
    """Its `configs.yaml`, with the text of each prompt template in the place of its path."""


def require_library() -> str:
    """Return the version of alpaca-eval.

    Raises:
        OptuneError: it is not installed.
    """
    if find_spec("alpaca_eval") is None:
        raise OptuneError("AlpacaEval 2 needs the library alpaca-eval, which is not installed: install optune[alpaca]")
    return version("alpaca-eval")


def find_annotator(config: str) -> AnnotatorFiles:
    """Read an annotator's definition.

    Args:
        config: name of one of the library's, or a folder.

    Raises:
        OptuneError: the library is not installed, or there is no such annotator.
        JudgeError: it is not asked through OpenAI's API, or holds a secret.
    """
    require_library()
    spec = find_spec("alpaca_eval")
    assert spec is not None and spec.origin is not None
    known = Path(spec.origin).parent / "evaluators_configs"
    folder = next((place for place in (known / config, Path(config)) if (place / "configs.yaml").is_file()), None)
    if folder is None:
        raise OptuneError(
            f"annotator.config={config!r} is neither the name of an annotator of alpaca-eval nor a folder with a "
            "configs.yaml: look at evaluators_configs in the library, weighted_alpaca_eval_gpt4_turbo is AlpacaEval 2's"
        )
    configs = yaml.safe_load((folder / "configs.yaml").read_text(encoding="utf-8"))
    for name, each in configs.items():
        asked_by = each.get("fn_completions", _COMPLETIONS)
        if asked_by != _COMPLETIONS:
            raise JudgeError(
                f"annotator {config!r}: {name} is asked by {asked_by!r}, and only {_COMPLETIONS!r} (any endpoint that "
                "speaks OpenAI's API) is supported: copy its folder, and say so there"
            )
        template = folder.parent / each["prompt_template"]
        each["prompt_template"] = (
            template.read_text(encoding="utf-8") if template.is_file() else each["prompt_template"]
        )
        each["completions_kwargs"] = {
            key: value for key, value in each.get("completions_kwargs", {}).items() if key not in _OURS
        }
    if found := list(secrets_in(configs)):
        raise JudgeError(
            f"annotator {config!r}, {found[0]}: holds a secret, and what was asked is stored. Keep it in the "
            "environment variable that annotator.api_key_env names"
        )
    return AnnotatorFiles(name=folder.resolve().name, configs=configs)


def describe_annotator(files: AnnotatorFiles, annotator: Annotator) -> str:
    """Return the annotator as a reader of its verdicts must know it."""
    models = sorted({str(each["completions_kwargs"].get("model_name")) for each in files.configs.values()})
    return f"{files.name} ({', '.join(models)} at {annotator.base_url})"
