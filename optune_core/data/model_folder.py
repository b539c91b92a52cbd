"""Model folders: which ones are accepted, their identity, and their layout inside an artifact.

model/    published weights, which `from_pretrained` and vLLM load, with the tokenizer
master/   float32 weights of the same model, from which training continues (only after training)
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
    """Return the local folder of a model: the given folder, or the downloaded snapshot of a hub id.

    Raises:
        ModelError: the folder or hub id does not exist, or the folder holds no model in safetensors.
    """
    folder = Path(model.model).expanduser()
    if not folder.is_dir():
        if model.model.startswith((".", "/", "~")) or model.model.count("/") != 1:
            raise ModelError(
                f"model {model.model!r} is neither a folder on this machine nor a hub id (owner/name): "
                "correct the path, or give a hub id"
            )
        folder = _download(model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {model.model!r} has no config.json: give a folder in the layout of transformers")
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        found = f" (it has {', '.join(sorted(pickles))}, which can contain code)" if pickles else ""
        raise ModelError(f"model {model.model!r} has no *.safetensors weights{found}: convert it to safetensors first")
    return folder


def model_files(folder: Path) -> list[Path]:
    """List the files of a model folder that are copied: weights, configuration, tokenizer. Never pickles or code."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _KEPT)


def model_identity(folder: Path) -> str:
    """Return the SHA-256, in hex, over the names and contents of the files that `copy_model` copies."""
    return digest([[path.name, file_digest(path)] for path in model_files(folder)])


def copy_model(folder: Path, target: Path) -> None:
    """Copy the files of `model_files`. They are never linked: an artifact must not change when its source is edited."""
    target.mkdir(parents=True)
    for path in model_files(folder):
        shutil.copyfile(path, target / path.name)


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer. Where it has no padding token, its end-of-sequence token is used.

    Args:
        folder: folder with the tokenizer's files.
        name: name of the model in messages.

    Raises:
        ModelError: the tokenizer has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model {name!r} has no chat template: use an instruction-tuned model, "
            "or add chat_template.jinja to its folder"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model {name!r}: its tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_token_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the token ids of chat messages in the model's template, up to the beginning of its response."""
    return _token_ids(tokenizer, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def conversation_token_ids(tokenizer: Any, messages: list[dict[str, str]], response: str) -> list[int]:
    """Return the token ids of chat messages and a response in the model's template, as reward models read them."""
    answered = [*messages, {"role": "assistant", "content": response}]
    return _token_ids(tokenizer, tokenizer.apply_chat_template(answered, tokenize=False))


def _token_ids(tokenizer: Any, templated: str) -> list[int]:
    token_ids: list[int] = tokenizer(templated, add_special_tokens=False)["input_ids"]
    return token_ids


def most_tokens(model: Any) -> int:
    """Return the number of positions of a loaded model, in tokens; `sys.maxsize` where its configuration names none,
    as for relative positions."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def check_one_logit(folder: Path, name: str) -> None:
    """Raise ModelError unless the folder holds a sequence classifier with exactly one logit."""
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
        raise ModelError(
            f"model {model.model!r} is not a folder on this machine and cannot be downloaded: {error}. "
            "Give the path of a local copy, or repair the connection"
        ) from error
