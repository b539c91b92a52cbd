"""TRL's DPO trainer with Eq. 6 as its loss, on token ids and reference log-probabilities that are already there."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from optune_core.config.schema import Training
from optune_core.errors import ConfigError, NonFiniteLoss
from optune_core.losses import wdpo_losses
from optune_core.training.batches import MicroBatchSampler
from optune_core.training.logps import response_logps


class WeightedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPO training on rows of token ids, reference log-probabilities and rewards.

    Checkpoints, schedules, distribution and metrics are TRL's and transformers'. Replaced are: data preparation (the
    stored token ids are the truth), the reference pass (done before, stored), the loss (Eq. 6, mean over all pairs of
    an optimizer step, however they fall into micro-batches), and the order of the data (see `batches`).
    """

    def __init__(self, *, micro_batches: list[list[int]], beta1: float, beta2: float, **kwargs: Any) -> None:
        self._sampler_groups = micro_batches
        self._beta1, self._beta2 = beta1, beta2
        super().__init__(**kwargs)
        # compute_loss divides by the pairs of the whole step itself.
        self.loss_is_scaled_for_ga = True

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(self.train_dataset.column_names)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> MicroBatchSampler:
        return MicroBatchSampler(self._sampler_groups, self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        pairs = torch.tensor(sum(len(batch["chosen_rewards"]) for batch in batch_samples), device=device)
        total: Tensor = self.accelerator.gather(pairs).sum()
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        chosen_logps, rejected_logps = response_logps(model, inputs).chunk(2)
        losses, values = wdpo_losses(
            chosen_logps,
            rejected_logps,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            inputs["chosen_rewards"],
            inputs["rejected_rewards"],
            self._beta1,
            self._beta2,
        )
        if not torch.isfinite(losses).all():
            raise NonFiniteLoss(
                f"loss of a pair is not finite at step {self.state.global_step}: {losses.tolist()}. "
                "The weights of the last step are untouched; lower training.learning_rate or training.beta1"
            )
        for name, value in values.items():
            key = "weights/mean" if name == "weights" else name
            self._metrics["train"][key].append(self.accelerator.gather(value.detach()).mean().item())
        gathered = self.accelerator.gather(values["weights"])
        self._metrics["train"]["weights/effective_sample_size"].append(
            (gathered.sum() ** 2 / (gathered**2).sum()).item()
        )
        # Processes average their gradients: undo that, the divisor already counts the pairs of all of them.
        loss: Tensor = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return loss


def trainer_arguments(config: Training, *, output_dir: str, seed: int, devices: int) -> DPOConfig:
    """The configuration in TRL's terms.

    Args:
        devices: processes that share an optimizer step.

    Raises:
        ConfigError: the batch cannot be shared evenly among the devices.
    """
    per_step = config.micro_batch_size * devices
    if config.batch_size % per_step:
        raise ConfigError(
            [
                f"training.batch_size={config.batch_size} is not a multiple of "
                f"micro_batch_size={config.micro_batch_size} × {devices} devices = {per_step}: change one of them"
            ]
        )
    return DPOConfig(
        output_dir=output_dir,
        beta=config.beta1,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // per_step,
        optim=config.optimizer,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=config.gradient_checkpointing,
        precompute_ref_log_probs=True,  # TRL then keeps no reference model; ours are in the rows
        max_length=None,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        save_strategy="steps" if config.checkpoint_steps else "no",
        save_steps=config.checkpoint_steps or 500,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
