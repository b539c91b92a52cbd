"""Training is exact in any precision and packing, stops before it diverges, and is pinned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optune_core.training.logps import PLAIN
from tests.integration.training.trainings import HYPO, dataset, losses, train
from tests.tiny import WDPO


@pytest.mark.slow
def test_gradient_checkpointing_changes_losses_only_by_rounding(tiny: Path, tmp_path: Path) -> None:
    rows = dataset(8)
    with_it, without = (
        train(tiny, tmp_path / str(on), rows, gradient_checkpointing=on, precision="bfloat16") for on in (True, False)
    )
    assert with_it.model.is_gradient_checkpointing and not without.model.is_gradient_checkpointing
    assert losses(with_it) == pytest.approx(losses(without), rel=1e-2)
    for trainer in (with_it, without):  # policy and reference took the same path
        first = trainer.state.log_history[0]
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wdpo", "best_of_n", "hypo"])
def test_packing_changes_no_loss_and_no_weight(tiny: Path, tmp_path: Path, loss: str) -> None:
    """Packs of any size, and training without packing, give the same losses and weights."""
    rows = dataset(7 if loss == "hypo" else 11)
    options: dict[str, Any] = {"wdpo": {}, "hypo": HYPO, "best_of_n": {"loss": {"type": "best_of_n"}}}[loss]
    options = options | {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    trainers = [
        train(tiny, tmp_path / f"{budget}{kernel}", rows, micro_batch_tokens=budget, kernel=kernel, **options)
        for budget, kernel in ((1000, "sdpa"), (60, "sdpa"), (1, "sdpa"), (60, PLAIN))
    ]
    assert len(losses(trainers[0])) == 4
    for other in trainers[1:]:
        assert losses(other) == pytest.approx(losses(trainers[0]), rel=1e-5)
        torch.testing.assert_close(other.model.state_dict(), trainers[0].model.state_dict(), rtol=1e-3, atol=1e-5)
        for mine, theirs in zip(other.state.log_history[:-1], trainers[0].state.log_history[:-1], strict=True):
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batch_tokens", [1000, 50, 1])
def test_the_first_loss_is_exact_in_any_precision_and_packing(
    tiny: Path, tmp_path: Path, precision: str, micro_batch_tokens: int
) -> None:
    options = {"precision": precision, "micro_batch_tokens": micro_batch_tokens}
    first = train(tiny, tmp_path, dataset(8), **options).state.log_history[0]
    assert first["loss"] == pytest.approx(first["weights/mean"] * torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_non_finite_loss_stops_before_the_step(tiny: Path, tmp_path: Path) -> None:
    from optune_core.errors import NonFiniteLoss

    rows = dataset(4)
    rows[2]["chosen_rewards"] = float("nan")
    with pytest.raises(NonFiniteLoss, match="not finite at step 0"):
        train(tiny, tmp_path, rows)


@pytest.mark.slow
def test_a_non_finite_gradient_stops_before_the_step(tiny: Path, tmp_path: Path) -> None:
    """At a margin of 0 the loss is R·ln 2 whatever β₁ is; its gradient is proportional to β₁ and overflows."""
    from optune_core.errors import NonFiniteLoss
    from optune_core.training import trainer

    trainers = []
    made = trainer.PolicyTrainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainers.append((self, {name: value.clone() for name, value in self.model.state_dict().items()}))
        return made(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.PolicyTrainer, "train", remember)
        with pytest.raises(NonFiniteLoss, match=r"norm of the gradient is (inf|nan) at step 0"):
            train(tiny, tmp_path, dataset(4), loss=WDPO | {"beta1": 1e38}, save_at=1)
    ((stopped, before),) = trainers
    torch.testing.assert_close(stopped.model.state_dict(), before, rtol=0, atol=0)
    assert any(not parameter.grad.isfinite().all() for parameter in stopped.model.parameters())
    assert list(tmp_path.rglob("checkpoint-*")) == []


@pytest.mark.slow
def test_training_widens_the_margin_along_the_pinned_losses(tiny: Path, tmp_path: Path) -> None:
    """The tolerance allows for another CPU, and is far too narrow for another loss."""
    trainer = train(tiny, tmp_path, dataset(8), epochs=4, learning_rate=1e-3)
    trajectory = losses(trainer)
    pinned = json.loads((Path(__file__).parent / "trajectory.json").read_text())
    assert trajectory == pytest.approx(pinned, rel=1e-3)
    assert trainer.state.log_history[-2]["rewards/margins"] > 0.1
