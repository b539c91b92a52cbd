"""Preparation of a run: inputs are checked, models and prompts enter the store, rewards become ready."""

from __future__ import annotations

from flows.reward_model import reward_model
from optune_core.config import OptuneConfig
from optune_core.config.devices import check_devices
from optune_core.rewards import ReadyReward
from tasks.prepare import draw_prompts, import_model, ready_reward
from tasks.support.context import RunContext
from tasks.support.stage import open_store


def prepare(settings: OptuneConfig, store: str, run: str, train_deployment: str | None) -> RunContext:
    """Check a run's inputs and bring them into the store, so that problems are found before anything is computed.

    Raises:
        OptuneError: an input cannot be used; the first problem is reported.
    """
    check_devices(settings)
    gold = ReadyReward.of(settings.held_out.gold) if settings.held_out.gold else None
    (policy,) = import_model(store, settings.policy, "policy")
    (prompts,) = draw_prompts(store, settings, policy)
    counts = open_store(store).manifest(prompts).metrics
    return RunContext(
        store=store,
        run=run,
        config=settings,
        train_deployment=train_deployment,
        policy=policy,
        prompts=prompts,
        held_out_prompts=counts["held_out"],
        reward=_reward(store, settings, run),
        gold=gold,
    )


def _reward(store: str, settings: OptuneConfig, run: str) -> ReadyReward:
    reward = settings.reward
    if reward.trained_first:
        return ReadyReward.of(reward, reward_model(store=store, run=run))
    return ready_reward(store, reward)
