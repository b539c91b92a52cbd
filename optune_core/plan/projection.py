"""A whole run's seconds from a configuration: iteration 0, later iterations, and the same with ρ = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optune_core.config import OptuneConfig
from optune_core.data.model_folder import Model
from optune_core.errors import ConfigError
from optune_core.plan.cost import Workload, stage_seconds
from optune_core.plan.devices import Device
from optune_core.plan.shape import ModelShape, known_shape
from optune_core.statistics import speedup_bound


@dataclass(frozen=True)
class Projection:
    """Seconds by stage."""

    first: dict[str, float]
    """Iteration 0."""
    later: dict[str, float]
    """Each of the others."""
    full: dict[str, float]
    """An iteration that regenerates every prompt."""
    iterations: int
    rho: float
    """Share of the prompts that a later iteration regenerates."""

    @property
    def seconds(self) -> float:
        """Of the run."""
        return sum(self.first.values()) + (self.iterations - 1) * sum(self.later.values())

    @property
    def seconds_full(self) -> float:
        """Of a run that regenerates every prompt in every later iteration."""
        return sum(self.first.values()) + (self.iterations - 1) * sum(self.full.values())

    @property
    def iteration_speedup(self) -> float:
        """Of a later iteration over one with ρ = 1."""
        return sum(self.full.values()) / sum(self.later.values())

    @property
    def run_speedup(self) -> float:
        """Of the run over one with ρ = 1; iteration 0 is the same in both."""
        return self.seconds_full / self.seconds

    @property
    def regeneration_share(self) -> float:
        """g: share of generation and scoring in an iteration with ρ = 1."""
        return (self.full["generate"] + self.full["score"]) / sum(self.full.values())

    @property
    def bound(self) -> float:
        """1 / (1 − g·(1 − ρ)): the speed-up of an iteration whose generation takes ρ of the time for ρ of the prompts.

        The projection stays below it as far as generation has costs that do not shrink with the prompts.
        """
        return speedup_bound(self.regeneration_share, self.rho)


def project(config: OptuneConfig, work: Workload, device: Device) -> Projection:
    """Predict a run.

    Raises:
        OptuneError: the policy does not fit in the engine's memory.
    """
    offline = not config.selection.regenerates
    selected = math.ceil(config.selection.share * work.prompts)
    full = stage_seconds(work, device, 0 if offline else work.prompts)
    return Projection(
        first=full,
        later=stage_seconds(work, device, selected),
        full=full,
        iterations=config.iterations,
        rho=1.0 if offline else selected / work.prompts,
    )


def side_by_side(config: OptuneConfig, devices: int, engines: int | None = None) -> tuple[int, int]:
    """(engines, reward models) that a run has on so many devices, as the stages' `replicas` have it.

    Args:
        engines: that are asked for; default: the configuration's, else as many as the devices suffice for.
    """
    engine, scorers = config.generation.engine, config.reward.side_by_side()
    return (
        engines or engine.replicas or max(1, devices // engine.devices),
        1 if scorers is None else scorers.wanted or max(1, devices // scorers.devices),
    )


def workload_of(
    config: OptuneConfig,
    *,
    devices: int,
    engines: int | None = None,
    prompts: int | None = None,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
    parameters: float | None = None,
) -> Workload:
    """The work of an iteration of this configuration.

    Args:
        devices: that share training, and what engines and reward models run on.
        engines: side by side; default: the configuration's replicas, else as many as the devices suffice for.
        prompts: default: the configuration's sample.
        prompt_tokens, response_tokens: means; default: the configuration's maxima.
        parameters: weights of the policy; default: its model's.

    Raises:
        ConfigError: the prompts or the model's size are unknown, or a mean passes its maximum; all problems at once.
        ModelError: the model is not a dense decoder.
    """
    problems = []
    prompts = prompts or config.prompts.sample
    if prompts is None:
        problems.append("prompts.sample is not set, so the number of prompts is unknown: give it with --prompts")
    means = {}
    for option, mean, maximum, name in (
        ("--prompt-tokens", prompt_tokens, config.prompts.max_tokens, "prompts.max_tokens"),
        ("--response-tokens", response_tokens, config.generation.max_tokens, "generation.max_tokens"),
    ):
        means[option] = float(maximum) if mean is None else mean
        if not 0 < means[option] <= maximum:
            problems.append(
                f"{option} {means[option]:g} is not a mean of lengths up to {name}={maximum}: give one in between"
            )
    engine = config.generation.engine
    engines, scorers = side_by_side(config, devices, engines)
    if engines * engine.devices > devices:
        problems.append(
            f"{engines} engines × {engine.devices} devices (--engines, generation.engine.replicas and "
            f"tensor_parallel_size) are more than --devices {devices}: lower one of them, or give more devices"
        )
    if scorers > devices:
        problems.append(f"reward.replicas={scorers} is more than --devices {devices}: lower one, or raise the other")
    if config.training.loss.online_share is not None:
        problems.append(
            f"training.loss.type={config.training.loss.type!r} is not projected: the cost of its online samples is not "
            "known to the cost model. Plan a run with training.loss.type=wdpo, and measure an iteration of this one"
        )
    policy = ModelShape.from_parameters(parameters) if parameters else known_shape(config.policy.model)
    if policy is None:
        problems.append(
            f"policy.model {config.policy.model!r} is neither a local folder nor a model whose size is known: "
            "give its number of weights with --parameters, such as --parameters 7.2e9"
        )
    if problems or policy is None or prompts is None:
        raise ConfigError(problems, source="plan")
    reward = known_shape(config.reward.model) or policy if isinstance(config.reward, Model) else None
    return Workload(
        policy=policy,
        reward=reward,
        prompts=prompts,
        samples=config.generation.samples,
        prompt_tokens=means["--prompt-tokens"],
        response_tokens=means["--response-tokens"],
        pair_response_tokens=means["--response-tokens"],
        max_prompt_tokens=config.prompts.max_tokens,
        max_response_tokens=config.generation.max_tokens,
        shard_size=config.generation.shard_size,
        engine=engine,
        training=config.training,
        devices=devices,
        engines=engines,
        scorers=scorers,
    )
