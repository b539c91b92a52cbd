"""From a configuration to a prepared run: inputs checked, models and prompts in the store, rewards ready."""

from __future__ import annotations

from flows.reward_model import reward_model
from optune_core.config import OptuneConfig
from optune_core.process.devices import check_devices
from optune_core.rewards import RewardRef
from optune_core.storage import Ref
from tasks.prepare import classifier_ref, draw_prompts, function_ref, import_model
from tasks.support.context import RunContext
from tasks.support.stage import open_store


def prepare(settings: OptuneConfig, store: str, run: str, train_deployment: str | None) -> RunContext:
    """Find everything that can be wrong before work is spent.

    Raises:
        OptuneError: the first of the problems with the run's inputs.
    """
    check_devices(settings)
    gold = function_ref(settings.evaluation.gold) if settings.evaluation.gold else None
    (policy,) = import_model(store, settings.policy, "policy")
    (prompts,) = draw_prompts(store, settings, policy)
    counts = open_store(store).manifest(prompts).metrics
    return RunContext(
        store=store,
        run=run,
        config=settings,
        train_deployment=train_deployment,
        policy=policy.to_json(),
        prompts=prompts.to_json(),
        held_out_prompts=counts["held_out"],
        reward=_reward(store, settings, run),
        gold=gold,
    )


def _reward(store: str, settings: OptuneConfig, run: str) -> RewardRef:
    reward = settings.reward
    if reward.type == "function":
        return function_ref(reward)
    if reward.type == "classifier":
        (model,) = import_model(store, reward, "reward")
        return classifier_ref(reward, model)
    return classifier_ref(reward, Ref.from_json(reward_model(store=store, run=run)))
