"""TRL's DPO trainer with Eq. 6 as its loss, on token ids and reference log-probabilities that are already there."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import DPOConfig, DPOTrainer

from optune_core.config.schema import Training
from optune_core.errors import ConfigError, NonFiniteLoss
from optune_core.failpoints import reach
from optune_core.losses import wdpo_losses
from optune_core.training import checkpoints
from optune_core.training.batches import MicroBatchSampler, in_parts
from optune_core.training.logps import response_logps


class WeightedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPO training on rows of token ids, reference log-probabilities and rewards.

    Schedules, distribution and metrics are TRL's and transformers'. Replaced are: data preparation (the stored token
    ids are the truth), the reference pass (done before, stored), the loss (Eq. 6, mean over all pairs of an optimizer
    step, however they fall into micro-batches and their parts), the order of the data (see `batches`), and what a
    checkpoint is (see `checkpoints`).

    Args:
        micro_batches: row numbers.
        pairs_at_once: pairs of a micro-batch that share a forward and backward pass.
    """

    def __init__(
        self, *, micro_batches: list[list[int]], pairs_at_once: int, beta1: float, beta2: float, **kwargs: Any
    ) -> None:
        self._sampler_groups = micro_batches
        self._pairs_at_once = pairs_at_once
        self._beta1, self._beta2 = beta1, beta2
        super().__init__(**kwargs)
        if self.is_deepspeed_enabled:
            raise ConfigError(
                ["training.accelerate_config selects DeepSpeed, whose checkpoints are pickles: use DDP or FSDP"]
            )
        if self.is_fsdp_enabled and kwargs.get("peft_config") is not None:
            raise ConfigError(
                [
                    "training.accelerate_config selects FSDP, but training.lora is merged into whole weights at the "
                    "end: use DDP with it, or leave it out"
                ]
            )
        # compute_loss divides by the pairs of the whole step itself.
        self.loss_is_scaled_for_ga = True
        # Before anything is wrapped or sharded, so under the names that any wrapping is undone to.
        self.trained = {name: p.shape for name, p in self.model.named_parameters() if p.requires_grad}

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The weights of a sharded model, on the first process; None where the model is whole on every process."""
        return checkpoints.whole_weights(self.model, self.trained) if self.is_fsdp_enabled else None

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

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        parts = in_parts(inputs, self._pairs_at_once)
        losses = []
        for number, part in enumerate(parts, start=1):
            # Gradients are exchanged between processes once a step, with the last part of the last micro-batch.
            exchange = number == len(parts) or not self.accelerator.sync_gradients
            with contextlib.nullcontext() if exchange else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        reach("policy.forward")
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
        # One value a pair and process, so that the mean that is logged is that over pairs, however they are computed.
        of_pairs = self.accelerator.gather(torch.stack([losses.detach(), *values.values()], dim=1)).T.tolist()
        if not all(map(math.isfinite, of_pairs[0])):
            raise NonFiniteLoss(
                f"loss of a pair is not finite at step {self.state.global_step}: {of_pairs[0]}. "
                "The weights of the last step are untouched; lower training.learning_rate or training.beta1"
            )
        for name, column in zip(values, of_pairs[1:], strict=True):
            self._metrics["train"]["weights/mean" if name == "weights" else name] += column
        # Processes average their gradients: undo that, the divisor already counts the pairs of all of them.
        loss: Tensor = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if weights := self._metrics["train"].get("weights/mean"):
            effective = sum(weights) ** 2 / sum(weight**2 for weight in weights)
            self._metrics["train"]["weights/effective_sample_size"] = [effective]
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Called between clipping and the optimizer's step.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(value := float(norm)):
            raise NonFiniteLoss(
                f"norm of the gradient is {value} at step {self.state.global_step}. "
                "The weights of the last step are untouched; lower training.learning_rate or training.beta1"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoints.write(folder, self.model, self._bare_optimizer, self.lr_scheduler, self.trained)
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: weights and optimizer are restored together, where they compute."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore(Path(checkpoint), self.model, self._bare_optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: the forward pass is in bfloat16 or float32."""

    @property
    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)


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
        save_strategy="no",  # a callback decides, by the clock
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
