"""Model folders: what is accepted, what identifies them, and the layout they have inside an artifact.

model/    the published weights, loadable by `from_pretrained` and by vLLM, with the tokenizer
master/   float32 weights of the same model, where training continues from (only after training)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optune_core.errors import ModelError
from optune_core.parts.section import Section
from optune_core.storage.canonical import digest, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Model(Section):
    """A model folder or hub id in the transformers layout, with safetensors weights."""

    model: str
    """Path of a folder, or a hub id (`owner/name`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. Default: its main branch."""


_KEPT = (".safetensors", ".json", ".jinja", ".txt", ".model")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def resolve_model(model: Model) -> Path:
    """The local folder of a model: itself, or the downloaded snapshot of a hub id.

    Raises:
        ModelError: no such folder or hub id, or a folder that is no model in safetensors.
    """
    folder = Path(model.model).expanduser()
    if not folder.is_dir():
        if model.model.startswith((".", "/", "~")) or model.model.count("/") != 1:
            raise ModelError(f"model {model.model!r} is neither a folder here nor a hub id (owner/name)")
        folder = _download(model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {model.model!r} has no config.json: give a folder in the transformers layout")
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        found = f" (found {', '.join(sorted(pickles))}, which can hold code)" if pickles else ""
        raise ModelError(f"model {model.model!r} has no *.safetensors weights{found}: convert it to safetensors first")
    return folder


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are taken over: weights, configuration, tokenizer. Never pickles or code."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _KEPT)


def model_identity(folder: Path) -> str:
    """SHA-256 over names and contents of the files that are taken over."""
    return digest([[path.name, file_digest(path)] for path in model_files(folder)])


def copy_model(folder: Path, target: Path) -> None:
    """Copy the files that are taken over. Never links: an artifact must not change when its source is edited."""
    target.mkdir(parents=True)
    for path in model_files(folder):
        shutil.copyfile(path, target / path.name)


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        ModelError: it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model {name!r} has no chat template: use an instruction-tuned model, "
            "or add chat_template.jinja to its folder"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {name!r}: its tokenizer has no end-of-sequence token (eos_token): set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_token_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Chat messages in the model's template, up to where its response begins."""
    return _token_ids(tokenizer, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def conversation_token_ids(tokenizer: Any, messages: list[dict[str, str]], response: str) -> list[int]:
    """Chat messages and the response to them in the model's template, as reward models read them."""
    answered = [*messages, {"role": "assistant", "content": response}]
    return _token_ids(tokenizer, tokenizer.apply_chat_template(answered, tokenize=False))


def _token_ids(tokenizer: Any, templated: str) -> list[int]:
    token_ids: list[int] = tokenizer(templated, add_special_tokens=False)["input_ids"]
    return token_ids


def most_tokens(model: Any) -> int:
    """Tokens that a loaded model has positions for; no limit is known of models whose positions are relative."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def check_one_logit(folder: Path, name: str) -> None:
    """Raises ModelError unless the folder holds a sequence classifier with exactly one logit."""
    config = json.loads((folder / "config.json").read_text())
    architectures = config.get("architectures") or []
    if not any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        raise ModelError(
            f"reward model {name!r} is a {', '.join(architectures) or 'model without architectures'}: "
            "a reward model is an AutoModelForSequenceClassification with one logit"
        )
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if labels != 1:
        raise ModelError(f"reward model {name!r} has {labels} logits: a reward model has exactly one (num_labels=1)")


def _download(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in _KEPT]
    try:
        return Path(snapshot_download(model.model, revision=model.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"model {model.model!r} is no folder here and cannot be downloaded: {error}") from error
