"""The configuration of a run. The words are the paper's: policy, reference, chosen, rejected, rho, beta1, beta2.

Where the paper gives a value it is quoted beside the field; the others are common practice and say so.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optune_core.parts.names import FunctionPath, Name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------- what is read


class FileSource(Section):
    """A JSONL or Parquet file, told apart by its ending; local, or any URL that fsspec reads."""

    type: Literal["file"] = "file"
    path: str


class HubSource(Section):
    """A data set of the Hugging Face hub."""

    type: Literal["hub"] = "hub"
    dataset: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


Source = Annotated[FileSource | HubSource, Field(discriminator="type")]


class Model(Section):
    """A model folder or hub id in the transformers layout, with safetensors weights."""

    model: str
    revision: str | None = None


class PairColumns(Section):
    """Columns of a fixed preference pair per prompt: text, or an assistant message list."""

    chosen: str = "chosen"
    rejected: str = "rejected"


class Prompts(Section):
    source: Source
    column: str = "prompt"
    """A string column, or chat messages whose last turn is the user's."""
    pairs: PairColumns | None = None
    """With it the source also holds one preference pair a prompt: the replay set of offline DPO."""
    sample: int | None = Field(default=None, ge=1)
    """Prompts to train on, drawn once with the run's seed (paper: 48k). Default: all that remain."""
    held_out: int = Field(default=0, ge=0)
    """Prompts drawn for evaluation only, disjoint from the others."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt in tokens, chat template included (paper: 512)."""
    too_long: Literal["drop", "error"] = "drop"
    """What becomes of a longer prompt: `drop` leaves it out and counts it, `error` stops."""


# ---------------------------------------------------------------- one section a stage


class Selection(Section):
    selector: Literal["optune", "random", "all", "margin", "relative", "bandit", "none"] = "optune"
    """`optune`: lowest chosen reward first; `none` regenerates nothing (offline DPO on `prompts.pairs`). Beyond the
    paper `margin`: smallest reward margin first; `relative`: chosen reward lowest against what the prompt's own
    responses scored so far; `bandit`: highest upper confidence bound of the gain in chosen reward."""
    rho: float = Field(default=0.5, gt=0.0, le=1.0)
    """ρ, the share of prompts regenerated from iteration 1 on; iteration 0 takes every prompt. Read by the ranking
    selectors only; and with `training.loss: hypo` the share sampled in every iteration."""


class Replicated(Section):
    """What works side by side, each in a process of its own on devices of its own."""

    replicas: int | None = Field(default=None, ge=1)
    """Engines, or reward models, that share the shards between them. Default: as many as the machine's devices suffice
    for, at least one. Changes no result, so it may be changed in a run."""

    HOW: ClassVar = ("replicas",)
    """Fields that say how to compute, not what: no part of an artifact's key, and free to change in a run."""

    @property
    def devices(self) -> int:
        """That each of them needs."""
        return 1


class VllmEngine(Replicated):
    type: Literal["vllm"] = "vllm"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that an engine is spread over, for a policy that is too large for one. `replicas` is faster where it is
    not."""
    max_num_seqs: int = Field(default=256, ge=1)
    enforce_eager: bool = False
    """Do not compile the model: a faster start, slower generation. Pays for a few ten thousand tokens on a CPU."""
    cpu_kv_cache_gib: int = Field(default=2, ge=1)
    """Bounds the key-value cache where vLLM runs on a CPU."""
    repeatable: bool = True
    """True: shards are answered one by one, so a run that was killed samples to the bit what an uninterrupted one does.
    False: requests of the next shards enter the engine while the last ones of a shard still run, which is faster. A
    shard that is done again after a kill is then a fresh, equally valid sample of the same policy: its batches differ,
    and so do roundings. It is part of a shard's key, as all that decides about bytes: a run that promises them must
    not find shards of one that does not."""

    @property
    def devices(self) -> int:
        """That each engine needs."""
        return self.tensor_parallel_size


class TransformersEngine(Replicated):
    """`generate` of transformers: slow, for machines where vLLM cannot be had."""

    type: Literal["transformers"] = "transformers"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch_size: int = Field(default=16, ge=1)


Engine = Annotated[VllmEngine | TransformersEngine, Field(discriminator="type")]


class Generation(Section):
    samples: int = Field(default=2, ge=2)
    """K, responses a prompt (paper: 2). With more, the pair is the best against the worst."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Paper: 1.0."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Paper: 0.9."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest response in tokens (paper: 512)."""
    truncated: Literal["keep", "drop"] = "keep"
    """Whether a response cut at `max_tokens` may enter a pair."""
    ahead: bool = False
    """Beyond the paper: while π_{t+1} trains on a work pool, iteration t + 1 samples already, from π_t. Hides the
    shorter of the two behind the longer, if they have devices of their own. From iteration 1 on responses then come
    from a policy that is one iteration old (`sampled_from` in the replay set, `staleness/mean` in its metrics)."""
    engine: Engine = Field(default_factory=VllmEngine)
    shard_size: int = Field(default=256, ge=1)
    """Prompts a shard: the unit that is committed, and done again after a kill."""
    logps: bool = False
    """Also ask the engine for the log-probability of what it samples, before temperature and top_p; needed by
    `training.reference_logps: engine`. A bfloat16 vLLM and bfloat16 autocast in torch differed by 0.35 nats a response
    of 85 tokens in the mean, 1.2 at most (SmolLM2-135M, 32 responses, `tests/benchmarks/engine_logps.py`)."""


class ClassifierReward(Model, Replicated):
    """An `AutoModelForSequenceClassification` with one logit, with its own tokenizer and chat template."""

    type: Literal["classifier"] = "classifier"
    batch_size: int = Field(default=16, ge=1)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class FunctionReward(Section):
    """A function `module:function(prompts, responses) -> scores`, for verifiable rewards."""

    type: Literal["function"] = "function"
    function: FunctionPath


class FilePairs(Section):
    """Preference data with columns prompt, chosen, rejected."""

    type: Literal["file"] = "file"
    source: Source


class LabelledPairs(Section):
    """Pairs of π_0's own samples on the training prompts, labelled by a function."""

    type: Literal["labelled"] = "labelled"
    function: FunctionPath
    max_pairs_per_prompt: int = Field(default=2, ge=1)


class TrainedReward(Model, Replicated):
    """A Bradley-Terry reward model (Eq. 1) that the flow `reward-model` trains once from the backbone `model`."""

    type: Literal["trained"] = "trained"
    pairs: Annotated[FilePairs | LabelledPairs, Field(discriminator="type")]
    held_out_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of prompts kept for the reported accuracy; split by prompt."""
    epochs: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0.0)
    train_batch_size: int = Field(default=16, ge=1)
    frozen_layers: int = Field(default=0, ge=0)
    """Lowest transformer layers (and the embeddings) left as they are."""
    max_tokens: int = Field(default=1024, ge=8)
    """Pairs that are longer on a side (prompt and response), or longer than the backbone reads, are left out."""
    batch_size: int = Field(default=16, ge=1)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


Reward = Annotated[ClassifierReward | FunctionReward | TrainedReward, Field(discriminator="type")]


class Lora(Section):
    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    target_modules: str | list[str] = "all-linear"


_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _check_duration(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"\d+[smh]", value):
        raise ValueError(f"{value!r} is not a duration: write a whole number and its unit, such as 30s, 5m or 1h")
    return value


Duration = Annotated[str, BeforeValidator(_check_duration)]


class Training(Section):
    loss: Literal["wdpo", "best_of_n", "hypo"] = "wdpo"
    """`wdpo`: weighted DPO (Eq. 6). Beyond the paper `best_of_n`: supervised fine-tuning on the chosen responses of
    the replay set, a mean over their tokens; it reads neither β and has no reference. `hypo` (Song et al. 2024): DPO
    (Eq. 5) on the fixed pairs of `prompts.pairs`, and the divergence KL(π_θ ‖ π_ref) on responses that every iteration
    samples from π_t for ⌈ρ·|P|⌉ prompts drawn at random. Theirs has `reference: initial`."""
    beta1: float | None = Field(default=None, gt=0.0, validate_default=True)
    """β₁ of Eq. 6, the strength of the tie to the reference. Not given by the paper: state it. Read by `wdpo` and
    `hypo`."""
    beta2: float | None = Field(default=None, ge=0.0, validate_default=True)
    """β₂ of Eq. 6, the sharpness of the reward weight; 0 is DPO up to the factor ½. Not given by the paper: state it.
    Read by `wdpo`."""
    kl_coefficient: float | None = Field(default=None, gt=0.0, validate_default=True)
    """λ of HyPO, the weight of the divergence. Read by `hypo`."""
    reference: Literal["previous", "initial"] = "previous"
    """π_t (the paper's) or π_0."""
    reference_logps: Literal["computed", "engine"] = "computed"
    """`engine`: for pairs that were sampled from the reference in this iteration, take the log-probabilities that the
    engine had them with (needs `generation.logps`), instead of computing them. Saves that share of the reference
    pass; costs exactness, since engine and trainer round differently: the first loss is no longer mean(R)·ln 2."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replay set an iteration. Not given by the paper."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs an optimizer step, over all devices (paper: 128); with `hypo` pairs and online samples together."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens that share a forward and backward pass on one device: pairs are packed until they are as many, without
    padding, and with each prompt once. Changes no result but roundings, so it may be changed in a run."""
    optimizer: Literal["rmsprop", "adamw_torch", "adamw_torch_fused"] = "rmsprop"
    """Paper: RMSprop. `adamw_torch_fused` is `adamw_torch` in one pass over the weights."""
    learning_rate: float = Field(default=5e-7, gt=0.0)
    """Paper: 5e-7."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Not given by the paper."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Paper: 0.1."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast type of the forward pass; the master weights are float32 in either case."""
    min_reward_gap: float | None = None
    """Train on no pair whose reward margin is below it. Beyond the paper, whose Eq. 6 gives such a pair the weight ½,
    not 0. Default: train on all."""
    gradient_checkpointing: bool = False
    checkpoint_every: Duration = "5m"
    """Most time that a kill may cost: a checkpoint (weights and optimizer, in float32) is committed at the first
    optimizer step after it, in the background. `0s`: after every step."""
    lora: Lora | None = None
    accelerate_config: str | None = None
    """File for `accelerate launch --config_file` (DDP, FSDP). Default: one process a device."""

    HOW: ClassVar = ("micro_batch_tokens", "gradient_checkpointing", "checkpoint_every", "accelerate_config")
    """Fields that say how to compute, not what: no part of an artifact's key, and free to change in a run."""
    READS: ClassVar[dict[str, tuple[str, ...]]] = {
        "wdpo": ("beta1", "beta2"),
        "best_of_n": (),
        "hypo": ("beta1", "kl_coefficient"),
    }
    """Fields without a default that a loss reads."""

    @field_validator("beta1", "beta2", "kl_coefficient")
    @classmethod
    def _loss_has_what_it_reads(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None and info.field_name in cls.READS.get(info.data.get("loss", ""), ()):
            raise PydanticCustomError("missing", "required by the loss")
        return value

    @property
    def checkpoint_seconds(self) -> int:
        return int(self.checkpoint_every[:-1]) * _SECONDS[self.checkpoint_every[-1]]


class Evaluation(Section):
    samples: int = Field(default=1, ge=1)
    """Responses per held-out prompt, drawn as in training."""
    gold: FunctionReward | None = None
    """A second reward for reporting only, never optimised."""


class Health(Section):
    """Limits at which a run stops rather than trains on rubbish. They change no result, so they may be changed in a
    run; common-sense values, none of them the paper's."""

    max_dropped: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of the regenerated prompts that may end without a fresh pair."""
    min_distinct: float = Field(default=0.1, ge=0.0, le=1.0)
    """Smallest share of distinct responses among the fresh ones: below it the policy says one thing to everything."""
    min_length: float = Field(default=0.1, ge=0.0)
    """Smallest mean length of the fresh responses, as a share of iteration 0's: below it the policy falls silent."""
    max_truncated: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of the fresh responses that may be cut at `generation.max_tokens`."""


class OptuneConfig(Section):
    """Everything that determines a run's result. Where it runs (store, pools) is not part of it."""

    name: Name
    seed: int = Field(default=0, ge=0)
    iterations: int = Field(default=3, ge=1)
    """T (paper: 3)."""
    policy: Model
    prompts: Prompts
    selection: Selection = Field(default_factory=Selection)
    generation: Generation = Field(default_factory=Generation)
    reward: Reward
    training: Training
    evaluation: Evaluation = Field(default_factory=Evaluation)
    health: Health = Field(default_factory=Health)

    @model_validator(mode="after")
    def _engine_logps_are_asked_for(self) -> OptuneConfig:
        if self.training.reference_logps == "engine" and not self.generation.logps:
            raise ValueError(
                "training.reference_logps='engine' takes the engine's log-probabilities, but generation.logps=false "
                "does not ask the engine for them: set generation.logps=true"
            )
        return self

    @model_validator(mode="after")
    def _hypo_is_offline_pairs_and_fresh_samples(self) -> OptuneConfig:
        if self.training.loss != "hypo":
            return self
        if self.selection.selector != "none":
            raise ValueError(
                "training.loss='hypo' trains on a fixed preference set, but selection.selector="
                f"{self.selection.selector!r} regenerates pairs: set selection.selector=none and prompts.pairs"
            )
        if self.generation.ahead:
            raise ValueError(
                "training.loss='hypo' needs samples of the policy that is trained, but generation.ahead=true takes "
                "them from the one before: leave generation.ahead out"
            )
        return self

    @model_validator(mode="after")
    def _offline_needs_pairs(self) -> OptuneConfig:
        if self.selection.selector == "none" and self.prompts.pairs is None:
            raise ValueError(
                "selection.selector='none' regenerates nothing, so prompts.pairs must name the columns "
                "of a fixed preference pair: add `pairs: {chosen: chosen, rejected: rejected}` to prompts"
            )
        if self.prompts.pairs is not None and self.selection.selector != "none":
            raise ValueError(
                f"prompts.pairs is only read with selection.selector='none', not {self.selection.selector!r}: "
                "leave one of them out"
            )
        return self
