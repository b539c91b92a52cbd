"""transformers' Trainer with the project's losses, on packed pairs with reference log-probabilities."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from optune_core.errors import ConfigError, NonFiniteLoss
from optune_core.losses.equations import effective_sample_size
from optune_core.losses.loss import RowLosses
from optune_core.process.failpoints import reach
from optune_core.training import checkpoints
from optune_core.training.batches import Step
from optune_core.training.layout import TokenPairs
from optune_core.training.logps import row_logps
from optune_core.training.packs import PackData
from optune_core.training.spec import Training


@dataclass(frozen=True)
class PairData:
    """The training data: N rows, which are preference pairs followed by online samples."""

    pairs: TokenPairs
    """Token ids of the rows."""
    reference_logps: Tensor | None
    """float32, (2, N): log π_ref(y|x) of chosen and rejected; None: the loss has no reference."""
    rewards: Tensor
    """float32, (2, N): explicit rewards of chosen and rejected; NaN for online samples."""
    preferences: int | None = None
    """Number of rows that are pairs; the rows after them are online samples (HyPO). None: all rows are pairs."""


@dataclass(frozen=True)
class StepData:
    """The part of an optimizer step that one process computes."""

    packs: list[PackData]
    """Packs of this process."""
    rows: int
    """Number of rows in the step, over all processes."""
    tokens: int
    """Number of tokens in the chosen responses of the step, over all processes."""


class StepDataset(Dataset[StepData]):
    """Data set whose items are the optimizer steps, in order, as one process computes them."""

    def __init__(self, steps: Sequence[Step], data: PairData, process: int) -> None:
        self._steps, self._data, self._process = steps, data, process

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, number: int) -> StepData:
        step, data = self._steps[number], self._data
        counted = [row for process in step for pack in process if pack.counted for row in pack.rows]
        preferences = len(data.pairs) if data.preferences is None else data.preferences
        online = sum(row >= preferences for row in counted)
        packs = []
        for pack in step[self._process]:
            rows = list(pack.rows)
            reference = None if data.reference_logps is None else data.reference_logps[:, rows]
            packs.append(
                PackData(
                    row=data.pairs.row(rows),
                    reference_logps=reference,
                    rewards=data.rewards[:, rows],
                    counted=pack.counted,
                    online=torch.tensor([row >= preferences for row in rows]),
                    online_share=online / len(counted),
                )
            )
        return StepData(packs, len(counted), int(data.pairs.chosen_tokens[counted].sum()))


class PolicyTrainer(Trainer):  # type: ignore[misc]
    """Trainer of a policy on packed pairs.

    Optimizer, schedule, distribution and the log are those of transformers. Three things differ: steps are planned
    beforehand (see `batches`); the loss of a step is the mean over all of its rows, or over their tokens (see
    `losses.loss`), whatever their packing and the number of processes; and checkpoints hold no pickles (see
    `checkpoints`). Metrics have TRL's names.

    Args:
        model: policy after `logps.compute_inside`, with an adapter if `training.lora` asks for one.
        args: settings of transformers, see `trainer_arguments`.
        config: the section `training`; its loss is minimised.
        steps: optimizer steps of all epochs, in order.
        data: the rows that the steps refer to.
        epochs: number of epochs in `steps`.
        callbacks: callbacks of transformers.

    Raises:
        ConfigError: `training.accelerate_config` selects DeepSpeed, or FSDP together with `training.lora`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        config: Training,
        steps: Sequence[Step],
        data: PairData,
        epochs: int,
        callbacks: list[Any],
    ) -> None:
        self._loss = config.loss
        tempers = ["training.learning_rate", *(f"training.loss.{name}" for name in self._loss.tempers)]
        self._remedy = f"lower {' or '.join(tempers)}"
        self._steps_an_epoch = len(steps) // epochs
        self._row_metrics: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=model, args=args, train_dataset=StepDataset(steps, data, args.process_index), callbacks=callbacks
        )
        if self.is_deepspeed_enabled:
            raise ConfigError(
                ["training.accelerate_config selects DeepSpeed, whose checkpoints are pickles: select DDP or FSDP"]
            )
        if self.is_fsdp_enabled and hasattr(model, "peft_config"):
            raise ConfigError(
                [
                    "training.accelerate_config selects FSDP, but training.lora is merged into complete weights at the "
                    "end: select DDP, or leave training.lora out"
                ]
            )
        # Names and shapes are taken before the model is wrapped or sharded, since wrapping changes both.
        self.trained = {name: p.shape for name, p in self.model.named_parameters() if p.requires_grad}

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """Return the weights of a sharded model, on the first process; None: every process has the complete model."""
        return checkpoints.gathered_weights(self.model, self.trained) if self.is_fsdp_enabled else None

    def get_train_dataloader(self) -> DataLoader[StepData]:
        # accelerate must not prepare this loader: the plan has divided every step over the processes already.
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=lambda steps: steps[0])

    def _get_num_items_in_batch(self, batch_samples: list[StepData], device: torch.device) -> None:
        """Return nothing: `StepData` holds the numbers of rows and tokens."""

    def floating_point_ops(self, inputs: StepData) -> int:
        return 0

    def training_step(self, model: Any, inputs: StepData, num_items_in_batch: None = None) -> Tensor:
        """Run forward and backward passes of a step, pack by pack; return this process's part of the loss, a scalar."""
        model.train()
        divisor = inputs.tokens if self._loss.per_token else inputs.rows
        losses, values_of_rows = [], []
        for number, pack in enumerate(inputs.packs, start=1):
            # Gradients are exchanged between processes once a step, with the last pack.
            exchange = number == len(inputs.packs)
            with contextlib.nullcontext() if exchange else self.accelerator.no_sync(model):
                reach("policy.forward")
                computed = self._losses(model, pack)
                values, metrics = computed.losses, computed.metrics
                # Processes average their gradients. The factor undoes this, since the divisor counts all processes.
                loss = values.sum() * (pack.counted * self.accelerator.num_processes / divisor)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            if pack.counted:
                values_of_rows += torch.stack([values.detach(), *metrics.values()], dim=1).tolist()
        self._keep(gather_object(values_of_rows), list(metrics))
        return torch.stack(losses).sum()

    def _losses(self, model: Any, pack: PackData) -> RowLosses:
        """Return the loss of each row of a pack, before the mean."""
        pack = pack.to(self.args.device)
        return self._loss.losses(pack.batch(*row_logps(model, pack.row)))

    def _keep(self, values_of_rows: list[list[float]], names: list[str]) -> None:
        """Keep the values of a step's rows, (rows, 1 + metrics), until they are logged.

        Raises:
            NonFiniteLoss: the loss of a row is not finite.
        """
        losses, *columns = zip(*values_of_rows, strict=True)
        if not all(map(math.isfinite, losses)):
            raise NonFiniteLoss(
                f"the loss of a row is not finite at step {self.state.global_step}: {list(losses)}. "
                f"The weights of the last step are kept; {self._remedy}"
            )
        for name, column in zip(names, columns, strict=True):
            known = [value for value in column if not math.isnan(value)]  # an online sample has no margin, a pair no kl
            self._row_metrics["weights/mean" if name == "weights" else name] += known

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs |= {name: sum(values) / len(values) for name, values in self._row_metrics.items() if values}
        if weights := self._row_metrics.get("weights/mean"):
            logs["weights/effective_sample_size"] = float(effective_sample_size(torch.tensor(weights).double()))
        self._row_metrics.clear()
        super().log(logs, start_time)
        self.state.log_history[-1]["epoch"] = self.state.global_step / self._steps_an_epoch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # transformers calls this between clipping and the optimizer's step, so a bad gradient changes no weight.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(value := float(norm)):
            raise NonFiniteLoss(
                f"the norm of the gradient is {value} at step {self.state.global_step}. "
                f"The weights of the last step are kept; {self._remedy}"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoints.write(folder, self.model, self._bare_optimizer, self.lr_scheduler, self.trained)
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: `_load_optimizer_and_scheduler` restores weights too, when all are on their devices."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore(Path(checkpoint), self.model, self._bare_optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: there is no scaler, since the forward pass is in bfloat16 or float32."""

    @property
    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)


def with_adapter(model: Any, config: Training, seed: int) -> Any:
    """Return the model, with a fresh adapter if `training.lora` asks for one. `seed` determines its weights."""
    if config.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    set_seed(seed)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    if config.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def trainer_arguments(config: Training, *, output_dir: str, seed: int) -> TrainingArguments:
    """Return the section `training` as settings of transformers.

    Batch size and epochs are not among them, since the steps are planned: to transformers an item is a step, and all
    epochs are one.
    """
    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        optim=config.optimizer,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        save_strategy="no",  # a callback decides, by the clock
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
