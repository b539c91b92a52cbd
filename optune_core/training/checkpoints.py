"""The trainer's state as a folder of safetensors and JSON, so that nothing in a checkpoint is ever unpickled.

    weights.safetensors     trained parameters, under their names in the unwrapped model
    optimizer.safetensors   tensors of the optimizer, `<parameter>/<state>`
    random.safetensors      states of torch's generators, `<process>/cpu` and `<process>/cuda`
    state.json              the optimizer's parameter groups, the schedule, and Python's and numpy's generators
    trainer_state.json      transformers' own record: the step and the log

Model and optimizer may be wrapped for DDP or sharded by FSDP: the written tensors are complete in any case.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers.trainer import TRAINER_STATE_NAME

from optune_core.errors import CorruptArtifact
from optune_core.storage.canonical import canonical_json

WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
FILES = frozenset({WEIGHTS, OPTIMIZER, RANDOM, STATE, TRAINER_STATE_NAME})
_STATE_KEYS = {"groups", "schedule", "random"}

_log = logging.getLogger(__name__)


def write(folder: Path, model: Any, optimizer: Any, schedule: Any, trained: Mapping[str, torch.Size]) -> None:
    """Write all files except `trainer_state.json`. To be called by all processes; the first one writes.

    Args:
        folder: folder to make.
        model: the model that is trained, with its wrapper if it is wrapped or sharded.
        optimizer: torch's optimizer, not accelerate's wrapper.
        schedule: learning rate scheduler.
        trained: shapes of the trained parameters by their names in the unwrapped model; tied ones once.
    """
    main = PartialState().is_main_process
    if main:
        folder.mkdir(parents=True)
    weights = gathered_weights(model, trained)
    if main:
        save_file(weights, folder / WEIGHTS)
    del weights  # before the optimizer's copy is made
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    tensors, generators = zip(*gather_object([_random_state()]), strict=True)
    if not main:
        return
    moments = {f"{name}/{key}": value for name, values in state["state"].items() for key, value in values.items()}
    save_file({name: value.contiguous() for name, value in moments.items()}, folder / OPTIMIZER)
    save_file({f"{p}/{name}": value for p, each in enumerate(tensors) for name, value in each.items()}, folder / RANDOM)
    rest = {"groups": state["param_groups"], "schedule": schedule.state_dict(), "random": generators}
    (folder / STATE).write_bytes(canonical_json(rest))


def gathered_weights(model: Any, trained: Iterable[str]) -> dict[str, Tensor]:
    """Gather the trained parameters on the CPU. To be called by all processes; only the first one gets them.

    Args:
        model: the model that is trained, with its wrapper if it is wrapped or sharded.
        trained: names of the trained parameters in the unwrapped model.

    Returns:
        Complete tensors by name on the first process, {} on the others.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    # The state has tied weights under each of their names, but safetensors takes a tensor only once.
    return {name: state[name].contiguous() for name in trained} if PartialState().is_main_process else {}


def check(folder: Path, trained: Mapping[str, torch.Size]) -> None:
    """Check that `restore` can read this checkpoint into a model with these trained parameters.

    Args:
        folder: folder of the checkpoint.
        trained: shapes of the trained parameters by their names in the unwrapped model.

    Raises:
        CorruptArtifact: a file is missing, unknown, not readable, or holds the state of another model.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if foreign := sorted(present - FILES):
        raise CorruptArtifact(
            f"checkpoint {folder}: {foreign[0]!r} is not a file of a checkpoint, so the folder was changed from "
            "outside, and nothing in it is read"
        )
    if missing := sorted(FILES - present):
        raise CorruptArtifact(f"checkpoint {folder}: file {missing[0]!r} is missing")
    if (keys := set(_read_state(folder))) != _STATE_KEYS:
        raise CorruptArtifact(f"checkpoint {folder}: {STATE} holds {sorted(keys)} instead of {sorted(_STATE_KEYS)}")
    _read_json(folder / TRAINER_STATE_NAME)
    weights, moments = _shapes(folder / WEIGHTS), _shapes(folder / OPTIMIZER)
    _shapes(folder / RANDOM)
    expected = {name: list(shape) for name, shape in trained.items()}
    other = [name for name in {**weights, **expected} if weights.get(name) != expected.get(name)]
    other += [name for name in moments if name.rpartition("/")[0] not in expected]
    if other:
        raise CorruptArtifact(
            f"checkpoint {folder} was written for another model: the parameter {other[0]!r} is missing or has another "
            "shape. Another version of transformers or peft may be the cause"
        )


def restore(folder: Path, model: Any, optimizer: Any, schedule: Any) -> None:
    """Restore weights, optimizer and schedule. To be called by all processes, with arguments as in `write`.

    `restore_random` restores the random generators separately, after the data loader has made its own draws.
    """
    # Not strict, since a checkpoint has no frozen parameters and only one name of tied ones; `check` was strict.
    options = StateDictOptions(full_state_dict=True, strict=False)
    state = _read_state(folder)
    moments: dict[str, Any] = {}
    for path, value in load_file(folder / OPTIMIZER).items():
        name, _, key = path.rpartition("/")
        moments.setdefault(name, {})[key] = value
    groups = [{name: _retuple(name, value) for name, value in group.items()} for group in state["groups"]]
    # The optimizer first: torch makes one step of size zero with it, to get a state that it can overwrite.
    set_optimizer_state_dict(model, optimizer, {"state": moments, "param_groups": groups}, options=options)
    del moments
    set_model_state_dict(model, dict[str, Any](load_file(folder / WEIGHTS)), options=options)
    schedule.load_state_dict(state["schedule"])


def restore_random(folder: Path) -> None:
    """Restore the states of this process's random generators."""
    states, process = _read_state(folder)["random"], PartialState().process_index
    if process >= len(states):
        _log.warning(
            "checkpoint %s was written by %d processes, so process %d starts with new random states",
            folder,
            len(states),
            process,
        )
        return
    tensors = load_file(folder / RANDOM)
    torch.set_rng_state(tensors[f"{process}/cpu"])
    if torch.cuda.is_available() and f"{process}/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{process}/cuda"])
    version, internal, gauss = states[process]["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *position = states[process]["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *position))


def _random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    generator: Any = np.random.get_state(legacy=True)
    name, keys, *position = generator
    return tensors, {"python": random.getstate(), "numpy": [name, keys.tolist(), *position]}


def _retuple(name: str, value: Any) -> Any:
    """Turn a list back into a tuple: JSON has none, and torch compares an optimizer's options by type."""
    return tuple(value) if isinstance(value, list) and name != "params" else value


def _read_state(folder: Path) -> dict[str, Any]:
    return _read_json(folder / STATE)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(f"checkpoint file {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptArtifact(f"checkpoint file {path} is not a JSON object")
    return value


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CorruptArtifact(f"checkpoint file {path} is not in the safetensors format: {error}") from error
