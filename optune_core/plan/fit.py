"""Fit of a device's effective rates to the iterations of a run.

A run has one model and one shape of batches, so the time of a stage determines one number: how much slower the device
is than its profile. This factor is fitted for each stage separately. Everything that it cannot show, such as whether
memory or arithmetic is slower, is taken from the profile; this matters more, the less the planned model resembles the
run's. An iteration that was interrupted is timed from its last start, and so appears faster than it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optune_core.config import OptuneConfig, parse_config
from optune_core.errors import OptuneError
from optune_core.plan.cost import STAGES, Workload, stage_seconds
from optune_core.plan.devices import Device
from optune_core.plan.projection import side_by_side
from optune_core.plan.shape import ModelShape
from optune_core.storage import ArtifactStore, Ledger, Ref
from optune_core.storage.ledger import no_such_run


@dataclass(frozen=True)
class MeasuredIteration:
    """A committed iteration with its work and its measured times."""

    work: Workload
    selected: int
    """Number of prompts that the iteration regenerated."""
    seconds: dict[str, float]
    """Measured seconds by stage."""


@dataclass(frozen=True)
class StageFit:
    """Fit of one stage."""

    factor: float
    """Measured over predicted seconds; 1 where the run had no such work."""
    error: float | None
    """Largest relative error when each iteration is predicted from the others; None with fewer than two."""


def fit_device(device: Device, iterations: Sequence[MeasuredIteration]) -> tuple[Device, dict[str, StageFit]]:
    """Fit a device to measured iterations.

    Returns:
        (the device with fitted factors, the fit of each stage).
    """
    predicted = [stage_seconds(each.work, replace(device, factors={}), each.selected) for each in iterations]
    fits = {}
    for stage in STAGES:
        pairs = [
            (seconds[stage], each.seconds[stage])
            for seconds, each in zip(predicted, iterations, strict=True)
            if seconds[stage] > 0 and each.seconds[stage] > 0
        ]
        fits[stage] = StageFit(_factor(pairs), _left_out_error(pairs))
    return replace(device, factors={stage: fit.factor for stage, fit in fits.items()}), fits


def _factor(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the f ≥ 0 that minimises Σ (measured − f · predicted)²: Σ measured · predicted / Σ predicted²."""
    if not pairs:
        return 1.0
    return sum(predicted * measured for predicted, measured in pairs) / sum(predicted**2 for predicted, _ in pairs)


def _left_out_error(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 2:
        return None
    return max(
        abs(_factor([*pairs[:index], *pairs[index + 1 :]]) * predicted / measured - 1)
        for index, (predicted, measured) in enumerate(pairs)
    )


def measured_iterations(store: ArtifactStore, run: str, *, devices: int) -> list[MeasuredIteration]:
    """Return the committed iterations of a run, with their lengths and times.

    Args:
        store: the store.
        run: name of the run.
        devices: number of devices that the run was made on, which the ledger does not record. The numbers of engines
            and reward models follow from it, or from the configuration that the run was created with.

    Raises:
        OptuneError: the run does not exist, has committed no iteration, or has a loss that is not projected.
        ModelError: the cost model does not cover the run's kind of model.
    """
    ledger = Ledger(store.objects, run)
    body, records = ledger.config(), ledger.iterations()
    if body is None:
        raise OptuneError(no_such_run(store.objects, run))
    if not records:
        raise OptuneError(
            f"run {run!r} has committed no iteration, so there is nothing to fit: wait for its first one "
            "(`optune status` shows it), or omit --run"
        )
    config = parse_config(body, source=f"run {run!r}")
    if config.training.loss.online_share is not None:
        raise OptuneError(
            f"run {run!r} has training.loss.type={config.training.loss.type!r}, whose online samples the cost model "
            "does not cover: give --run a run with another loss, or omit it"
        )
    inputs = ledger.inputs()
    policy = _shape(store, inputs["policy"], "model/config.json")
    reward = inputs["reward"]["model"] if inputs["reward"] else None
    scorer = _shape(store, reward, "model/config.json") if reward else None
    return [_measured(config, policy, scorer, record, devices) for record in records]


def _shape(store: ArtifactStore, ref: Ref, file: str) -> ModelShape:
    return ModelShape.from_config(json.loads(store.read(ref, file)), f"artifact {ref.stage}/{ref.key}")


def _measured(
    config: OptuneConfig,
    policy: ModelShape,
    reward: ModelShape | None,
    record: dict[str, Any],
    devices: int,
) -> MeasuredIteration:
    metrics = record["metrics"]
    replay, selected = metrics["replay"], metrics["selection"]["selected"]
    trained = ("chosen", "rejected") if config.training.loss.needs_rejected else ("chosen",)
    sides = [replay[f"tokens/{side}"] for side in trained]
    pair_responses = sum(sides)
    prompt_tokens = metrics["policy"]["tokens"] / config.training.epochs / metrics["policy"]["pairs"] - pair_responses
    fresh = (
        metrics["generated_tokens"] / (selected * config.generation.samples)
        if selected
        else pair_responses / len(sides)
    )
    engines, scorers = side_by_side(config, devices)
    work = Workload(
        policy=policy,
        reward=reward,
        prompts=metrics["policy"]["pairs"],
        samples=config.generation.samples,
        prompt_tokens=prompt_tokens,
        response_tokens=fresh,
        pair_response_tokens=pair_responses / len(sides),
        max_prompt_tokens=config.prompts.max_tokens,
        max_response_tokens=config.generation.max_tokens,
        shard_size=config.generation.shard_size,
        engine=config.generation.engine,
        training=config.training,
        devices=devices,
        engines=engines,
        scorers=scorers,
    )
    return MeasuredIteration(work, selected, record["timing"])
