"""Seconds of a complete run from its configuration: iteration 0, later iterations, and the same with ρ = 1."""

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
    """Predicted seconds of a run, by stage and iteration."""

    first: dict[str, float]
    """Seconds of iteration 0, by stage."""
    later: dict[str, float]
    """Seconds of each later iteration, by stage."""
    full: dict[str, float]
    """Seconds of an iteration that regenerates every prompt, by stage."""
    iterations: int
    rho: float
    """Share of the prompts that a later iteration regenerates."""

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return sum(self.first.values()) + (self.iterations - 1) * sum(self.later.values())

    @property
    def seconds_full(self) -> float:
        """Seconds of a run that regenerates every prompt in every iteration."""
        return sum(self.first.values()) + (self.iterations - 1) * sum(self.full.values())

    @property
    def iteration_speedup(self) -> float:
        """Speed-up of a later iteration over one with ρ = 1."""
        return sum(self.full.values()) / sum(self.later.values())

    @property
    def run_speedup(self) -> float:
        """Speed-up of the run over one with ρ = 1; iteration 0 is the same in both."""
        return self.seconds_full / self.seconds

    @property
    def regeneration_share(self) -> float:
        """Share g of generation and scoring in the time of an iteration with ρ = 1."""
        return (self.full["generate"] + self.full["score"]) / sum(self.full.values())

    @property
    def bound(self) -> float:
        """Bound of the speed-up, 1 / (1 − g·(1 − ρ)): generation takes ρ of the time for ρ of the prompts.

        The projection is below it, as far as generation has costs that do not shrink with the number of prompts.
        """
        return speedup_bound(self.regeneration_share, self.rho)


def project(config: OptuneConfig, work: Workload, device: Device) -> Projection:
    """Predict the seconds of a run.

    Args:
        config: the configuration.
        work: work of one of its iterations, as `workload_of` returns it.
        device: the device.

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
    """Return the numbers of engines and of reward models that a run has on this many devices.

    The numbers are those of the stages' `replicas`.

    Args:
        config: the configuration.
        devices: number of devices.
        engines: number of engines; default: the configuration's, otherwise as many as the devices suffice for.
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
    """Return the work of an iteration of this configuration.

    Args:
        config: the configuration.
        devices: number of devices that train together, and that engines and reward models run on.
        engines: number of engines side by side; default: the configuration's replicas, otherwise as many as the
            devices suffice for.
        prompts: number of prompts; default: the configuration's sample.
        prompt_tokens, response_tokens: mean lengths in tokens; default: the configuration's maxima.
        parameters: number of the policy's weights; default: its model's.

    Raises:
        ConfigError: the number of prompts or the model's size is unknown, or a mean exceeds its maximum; the message
            lists all problems.
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
                f"{option} {means[option]:g} cannot be the mean of lengths up to {name}={maximum}: "
                f"give a number above 0 and up to {maximum}"
            )
    engine = config.generation.engine
    engines, scorers = side_by_side(config, devices, engines)
    if engines * engine.devices > devices:
        problems.append(
            f"{engines} engines × {engine.devices} devices (--engines, generation.engine.replicas and "
            f"tensor_parallel_size) are more than --devices {devices}: lower one of them, or give more devices"
        )
    if scorers > devices:
        problems.append(
            f"reward.replicas={scorers} is more than --devices {devices}: lower reward.replicas, or raise --devices"
        )
    if config.training.loss.online_share is not None:
        problems.append(
            f"training.loss.type={config.training.loss.type!r} is not projected, because the cost model does not cover "
            "its online samples: plan a run with training.loss.type=wdpo, and measure an iteration of this one"
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
