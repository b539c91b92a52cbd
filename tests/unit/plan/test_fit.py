"""The fit of the cost model to the stage times of a run."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from optune_core.plan import STAGES, Device, fit_device, stage_seconds
from optune_core.plan.fit import MeasuredIteration
from tests.unit.plan.workloads import DEVICE, WORK


def measured(device: Device, noise: float, seed: int, iterations: int = 3) -> list[MeasuredIteration]:
    generator = random.Random(seed)
    runs = []
    for t in range(iterations):
        selected = 8 if t == 0 else 4
        seconds = stage_seconds(WORK, device, selected)
        runs.append(
            MeasuredIteration(
                WORK, selected, {s: value * generator.uniform(1 - noise, 1 + noise) for s, value in seconds.items()}
            )
        )
    return runs


def test_fit_recovers_the_factors_of_a_device() -> None:
    truth = {"start engine": 0.5, "generate": 3.0, "score": 0.25, "rank and merge": 2.0, "train": 1.4}
    device = replace(DEVICE, factors=truth)
    fitted, fits = fit_device(DEVICE, measured(device, 0.0, 0))
    assert fitted.factors == pytest.approx(truth)
    assert all(fit.error == pytest.approx(0, abs=1e-9) for fit in fits.values())
    for seed in range(20):
        noisy, fits = fit_device(DEVICE, measured(device, 0.1, seed))
        assert noisy.factors == pytest.approx(truth, rel=0.1)
        assert all(fit.error is not None and 0 < fit.error < 0.25 for fit in fits.values())


def test_fit_starts_from_the_profile_not_from_an_earlier_fit() -> None:
    once, _ = fit_device(DEVICE, measured(DEVICE, 0.1, 1))
    assert fit_device(once, measured(DEVICE, 0.1, 1))[0] == once


def test_one_iteration_is_fitted_without_an_error_estimate() -> None:
    fitted, fits = fit_device(DEVICE, measured(replace(DEVICE, factors={"train": 2.0}), 0.0, 0, iterations=1))
    assert fitted.factors["train"] == pytest.approx(2.0)
    assert {fit.error for fit in fits.values()} == {None}


def test_a_stage_that_did_no_work_keeps_its_rate() -> None:
    fitted, _ = fit_device(DEVICE, [MeasuredIteration(WORK, 0, {stage: 5.0 for stage in STAGES})])
    assert fitted.factors["generate"] == 1.0
    assert fitted.factors["train"] != 1.0
