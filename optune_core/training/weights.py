"""Weights of a policy: float32 master weights are loaded; float32 master and bfloat16 published weights are saved."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from optune_core.data.model_folder import model_files


def load_master(policy: Path) -> Any:
    """Load the causal language model of a policy artifact in float32.

    The weights are the master weights, or π_0's published ones. Dropout is disabled, because policy and reference have
    to be the same function for their comparison.

    Args:
        policy: local folder of the artifact.
    """
    from transformers import AutoModelForCausalLM

    folder = policy / "master"
    model = AutoModelForCausalLM.from_pretrained(folder if folder.is_dir() else policy / "model", dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@contextmanager
def weights_on_every_process() -> Iterator[None]:
    """Let every process load a model with its weights, within the block.

    Under FSDP transformers loads them on the first process only, and wrapping the model distributes them. A model that
    is not wrapped would compute with zeros on the other processes.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def save_policy(model: Any, weights: dict[str, Tensor] | None, previous: Path, target: Path) -> None:
    """Write a policy artifact: `master/` in float32, `model/` in bfloat16 with the previous policy's tokenizer.

    Args:
        model: transformers model.
        weights: float32 tensors by name; None: the model's own, which are complete on this process.
        previous: local folder of the policy artifact that training started from.
        target: empty folder to write to.
    """
    master, published = target / "master", target / "model"
    model.save_pretrained(master, state_dict=weights, safe_serialization=True)
    published.mkdir()
    for path in model_files(previous / "model"):
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, published / path.name)
    config = json.loads((published / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (published / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    for path in master.iterdir():
        if path.suffix == ".safetensors":
            _convert(path, published / path.name)
        elif path.name.endswith(".index.json"):
            shutil.copyfile(path, published / path.name)


def _convert(source: Path, target: Path) -> None:
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata()
    halved = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    save_file(halved, target, metadata=metadata)
