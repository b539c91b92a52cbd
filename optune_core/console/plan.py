"""Output of `optune plan`: predicted seconds of a run by stage, and what selective regeneration saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from optune_core.config import OptuneConfig
from optune_core.console.tables import plain_table, wide_console
from optune_core.data.model_folder import Model
from optune_core.errors import ConfigError
from optune_core.plan import STAGES, Device, Projection, StageFit, Workload, fit_device, named_device, project
from optune_core.plan.fit import MeasuredIteration, measured_iterations
from optune_core.plan.projection import workload_of
from optune_core.plan.shape import known_shape
from optune_core.storage import ArtifactStore, open_objects
from optune_core.words import duration, percent

_CONSOLE = wide_console()


@dataclass(frozen=True)
class PlanOptions:
    """Options of the command; None where one is not given."""

    device: str | None
    devices: int
    engines: int | None
    prompts: int | None
    prompt_tokens: float | None
    response_tokens: float | None
    parameters: float | None
    run: str | None
    run_devices: int


@dataclass(frozen=True)
class Plan:
    config: OptuneConfig
    work: Workload
    device: Device
    projection: Projection
    run: str | None
    fits: Mapping[str, StageFit]
    """The run's rates by stage; empty without a run."""


def make_plan(config: OptuneConfig, store_url: str, options: PlanOptions) -> Plan:
    """Predict a run, from a device's profile or from the measured rates of an earlier run.

    Raises:
        ConfigError: values that the prediction needs are unknown or impossible; the message names all of them.
        OptuneError: the device or the run is unknown, the run has no committed iteration, the policy does not fit.
    """
    if options.run is not None and options.device is None:
        raise ConfigError(
            [f"--run {options.run} needs --device: the kind of device that the run used, or the closest known one"],
            source="plan",
        )
    device = named_device(options.device or "a100-80gb")
    measured: list[MeasuredIteration] = []
    fits: dict[str, StageFit] = {}
    if options.run is not None:
        store = ArtifactStore(open_objects(store_url))
        measured = measured_iterations(store, options.run, devices=options.run_devices)
        device, fits = fit_device(device, measured)
    work = workload_of(
        config,
        devices=options.devices,
        engines=options.engines,
        prompts=options.prompts,
        prompt_tokens=_or_measured(options.prompt_tokens, measured, "prompt_tokens", config.prompts.max_tokens),
        response_tokens=_or_measured(
            options.response_tokens, measured, "response_tokens", config.generation.max_tokens
        ),
        parameters=options.parameters,
    )
    return Plan(config, work, device, project(config, work, device), options.run, fits)


def _or_measured(given: float | None, measured: list[MeasuredIteration], length: str, maximum: int) -> float | None:
    """Return the given mean length; else the run's, but at most the configuration's maximum; None without a run."""
    if given is not None or not measured:
        return given
    lengths: list[float] = [getattr(each.work, length) for each in measured]
    return min(sum(lengths) / len(lengths), float(maximum))


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as one JSON object for programs; times in seconds, shares from 0 to 1."""
    projection, work = plan.projection, plan.work
    return {
        "config": plan.config.name,
        "device": plan.device.name,
        "devices": work.devices,
        "engines": work.engines,
        "reward_models": work.scorers,
        "policy": asdict(work.policy),
        "prompts": work.prompts,
        "samples": work.samples,
        "prompt_tokens": work.prompt_tokens,
        "response_tokens": work.response_tokens,
        "rho": projection.rho,
        "iterations": projection.iterations,
        "first": projection.first,
        "later": projection.later,
        "full": projection.full,
        "seconds": projection.seconds,
        "seconds_full": projection.seconds_full,
        "regeneration_share": projection.regeneration_share,
        "iteration_speedup": projection.iteration_speedup,
        "run_speedup": projection.run_speedup,
        "bound": projection.bound,
        "run": plan.run,
        "fit": {stage: asdict(fit) for stage, fit in plan.fits.items()},
    }


def print_plan(plan: Plan) -> None:
    """Print the table and the totals."""
    projection, work = plan.projection, plan.work
    _CONSOLE.print(_table(plan))
    lines = [
        f"run of {projection.iterations} iterations: {duration(projection.seconds)}; "
        f"with every prompt regenerated: {duration(projection.seconds_full)}",
        f"speed-up at ρ = {projection.rho:g}: {projection.iteration_speedup:.2f}× an iteration "
        f"(bound {projection.bound:.2f}×, g = {100 * projection.regeneration_share:.1f} %), "
        f"{projection.run_speedup:.2f}× the run, whose iteration 0 is always full",
        f"assumed: {work.prompts:,} prompts × {work.samples} responses, mean {work.prompt_tokens:.0f} + "
        f"{work.response_tokens:.0f} tokens, {work.policy.parameters / 1e9:.3g}e9 weights, training on "
        f"{work.devices} × {plan.device.name}, {work.engines} engine{'s' if work.engines > 1 else ''}",
    ]
    reward = plan.config.reward
    if isinstance(reward, Model) and known_shape(reward.model) is None:
        lines.append(f"reward model {reward.model}: size unknown, assumed to be the policy's")
    if not plan.fits:
        lines.append("rates: published peaks and assumed utilisations, not measured; --run fits them to a run")
    for line in lines:
        _CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(plan: Plan) -> Table:
    projection = plan.projection
    table = plain_table(
        f"Plan of {plan.config.name}: predicted seconds"
        + (f", rates of run {plan.run}" if plan.run is not None else ""),
        gap=2,
    )
    table.add_column("stage", no_wrap=True)
    names = ["iteration 0", "share", "later, each", "share"]
    for name in [*names, "measured / profile", "left-out error"] if plan.fits else names:
        table.add_column(name, justify="right", no_wrap=True)
    first, later = sum(projection.first.values()), sum(projection.later.values())
    for stage in STAGES:
        row = [f"{projection.first[stage]:,.0f}", percent(projection.first[stage] / first)]
        row += [f"{projection.later[stage]:,.0f}", percent(projection.later[stage] / later)]
        if fit := plan.fits.get(stage):
            row += [f"{fit.factor:.2f}", "–" if fit.error is None else percent(fit.error)]
        table.add_row(stage, *row)
    table.add_section()
    table.add_row("iteration", f"{first:,.0f}", "", f"{later:,.0f}", "")
    return table
