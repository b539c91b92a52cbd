from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


@pytest.fixture
def trl_sigmoid_loss() -> Callable[..., Tensor]:
    """TRL's own DPO loss code on given log-probabilities, without a model: its forward returns them."""
    from trl import DPOTrainer

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
        pairs = len(chosen)
        # One response token a sequence, whose log-probability is the sequence's.
        per_token = torch.cat([chosen, rejected])[:, None]
        outputs = SimpleNamespace(
            log_probs=per_token,
            entropy=torch.zeros_like(per_token),
            mean_logits=torch.zeros_like(per_token),
            is_top1=torch.zeros_like(per_token, dtype=torch.bool),
        )

        def model(**kwargs: object) -> SimpleNamespace:
            return outputs

        model.training = True  # type: ignore[attr-defined]
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda value: value
        )
        trainer = SimpleNamespace(
            model=model,
            accelerator=accelerator,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            loss_types=["sigmoid"],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=0.0,
            f_divergence_type="reverse_kl",
            use_weighting=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        mask = torch.tensor([[0, 1]]).expand(2 * pairs, 2)
        inputs = {
            "input_ids": torch.zeros(2 * pairs, 2, dtype=torch.long),
            "attention_mask": torch.ones(2 * pairs, 2, dtype=torch.long),
            "completion_mask": mask,
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)

    return loss
