"""The files of a checkpoint: exact, never unpickled, refused where they are incomplete."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optune_core.errors import CorruptArtifact
from optune_core.training.checkpoints import FILES, STATE, WEIGHTS, check, restore_random, write
from tests.integration.checkpoints.evil import Evil
from tests.integration.checkpoints.stages import ROOT
from tests.integration.training.trainings import HYPO, dataset, losses, train


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw_torch_fused"])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize(
    ("step", "loss"), [(3, "wdpo"), (4, "wdpo"), (3, "best_of_n"), (3, "hypo")]
)  # in an epoch, between two
def test_a_resumed_training_equals_an_uninterrupted_one(
    tiny: Path, tmp_path: Path, optimizer: str, lora: dict[str, Any] | None, step: int, loss: str
) -> None:
    rows = dataset(4 if loss == "hypo" else 8)  # and four samples
    options: dict[str, Any] = {"wdpo": {}, "hypo": HYPO, "best_of_n": {"loss": {"type": "best_of_n"}}}[loss] | {
        "epochs": 3,
        "optimizer": optimizer,
        "lora": lora,
        "learning_rate": 1e-3,
        "schedule": "cosine",
    }
    uninterrupted = train(tiny, tmp_path / "uninterrupted", rows, **options)
    train(tiny, tmp_path / "cut", rows, save_at=step, **options)
    checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
    resumed = train(tiny, tmp_path / "resumed", rows, resume=str(checkpoint), **options)
    assert len(losses(uninterrupted)) == 6
    steps = slice(-1)  # the last entry is a summary with the time it took
    assert resumed.state.log_history[steps] == uninterrupted.state.log_history[steps]
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted.model.state_dict(), rtol=0, atol=0)
    assert {path.name for path in checkpoint.iterdir()} == FILES
    if lora:
        assert all("lora_" in name for name in resumed.trained)


def test_random_generators_continue_from_a_checkpoint(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), torch.randn(1).item(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    draw()  # an odd number of Gaussians: the generators keep the second of a pair
    trained = {name: parameter.shape for name, parameter in model.named_parameters()}
    write(tmp_path / "checkpoint", model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), trained)
    expected = draw()
    assert draw() != expected
    restore_random(tmp_path / "checkpoint")
    assert draw() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin", "scheduler.pt", "deep/er.bin"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_executed(tiny: Path, tmp_path: Path, name: str) -> None:
    rows = dataset(8)
    cut = train(tiny, tmp_path / "cut", rows, save_at=1)
    checkpoint, trace = tmp_path / "cut" / "checkpoint-1", tmp_path / "executed"
    check(checkpoint, cut.trained)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(CorruptArtifact, match=name.partition("/")[0]):
        check(checkpoint, cut.trained)
    # And even a trainer that is sent there does not read it.
    resumed = train(tiny, tmp_path / "resumed", rows, resume=str(checkpoint))
    assert losses(resumed) == losses(train(tiny, tmp_path / "uninterrupted", rows))
    assert not trace.exists()
    pickle.loads((checkpoint / name).read_bytes())
    assert trace.exists()  # it would have left its trace


@pytest.mark.slow
def test_an_unusable_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    cut = train(tiny, tmp_path / "cut", dataset(4), save_at=1, epochs=2)
    complete = tmp_path / "cut" / "checkpoint-1"
    for number, (spoil, complaint) in enumerate(
        [
            (lambda folder: (folder / STATE).unlink(), "'state.json' is missing"),
            (lambda folder: (folder / STATE).write_text("{"), "is not JSON"),
            (lambda folder: (folder / STATE).write_text("{}"), "instead of"),
            (lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps({})), "not in the safetensors format"),
        ]
    ):
        folder = shutil.copytree(complete, tmp_path / str(number))
        spoil(folder)
        with pytest.raises(CorruptArtifact, match=complaint):
            check(folder, cut.trained)
    with pytest.raises(CorruptArtifact, match=r"another model: the parameter 'model\.norm\.weight'"):
        check(complete, cut.trained | {"model.norm.weight": torch.Size([3])})


SHARDED = """
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from optune_core.training import checkpoints

model_folder, folder = Path(sys.argv[1]), Path(sys.argv[2])
state = PartialState(cpu=True)
assert state.num_processes == 2


def make(seed):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), trained


def step(model, optimizer, schedule, inputs):
    model(input_ids=inputs, labels=inputs).loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


batches = torch.randint(3, 300, (3, 2, 8), generator=torch.Generator().manual_seed(state.process_index))
model, optimizer, schedule, trained = make(0)
step(model, optimizer, schedule, batches[0])
checkpoints.write(folder, model, optimizer, schedule, trained)
state.wait_for_everyone()
again, its_optimizer, its_schedule, _ = make(1)
checkpoints.restore(folder, again, its_optimizer, its_schedule)
for batch in batches[1:]:
    step(model, optimizer, schedule, batch)
    step(again, its_optimizer, its_schedule, batch)
for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
    assert type(one.data).__name__ == "DTensor" and one.to_local().numel() < one.numel()
    assert torch.equal(one.to_local(), other.to_local()), name
"""


@pytest.mark.slow
def test_a_sharded_model_is_written_unsharded_and_restored_exactly(tiny: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "sharded.py", tmp_path / "checkpoint"
    script.write_text(SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, str(script), str(tiny / "policy"), str(folder)],
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    weights = load_file(folder / WEIGHTS)
    assert weights["model.embed_tokens.weight"].shape == (320, 64)
    assert "lm_head.weight" not in weights  # tied
    assert {path.name for path in folder.iterdir()} == FILES - {"trainer_state.json"}
