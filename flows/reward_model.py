"""Flow `reward-model`: train the Bradley-Terry reward model of a configuration, once."""

from __future__ import annotations

from prefect import flow

from flows.request import requested, store_url
from optune_core.config import OptuneConfig
from optune_core.errors import ConfigError
from optune_core.rewards.function import load_function
from optune_core.rewards.trained import LabelledPairs, TrainedReward
from optune_core.selection.everything import All
from optune_core.storage import Ref
from tasks.iteration import generate, select
from tasks.prepare import (
    check_store,
    draw_prompts,
    import_model,
    make_preferences,
    train_reward_model,
)
from tasks.records import show_reward_model
from tasks.support.context import RunContext
from tasks.support.logs import quiet_known_errors
from tasks.support.stage import open_store


@flow(name="reward-model")
def reward_model(
    config: str | None = None, overrides: list[str] | None = None, store: str | None = None, run: str | None = None
) -> Ref:
    """Train the reward model of a configuration with `reward.type: trained`.

    Args:
        config: YAML file of the experiment; default: the configuration of the run's last start.
        overrides: `section.key=value`, on top of it.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.
        run: name of the run whose configuration is used; needed without `config`.

    Returns:
        Reference to the reward model's artifact.

    Raises:
        ConfigError: the configuration is invalid, or its reward is not of type `trained`.
        OptuneError: there is no such run, or an input cannot be used.
    """
    quiet_known_errors()
    store = store_url(store)
    settings, run = requested(config, overrides or [], store, run)
    reward = settings.reward
    if not isinstance(reward, TrainedReward):
        raise ConfigError(
            [f"reward.type = {reward.type!r}: this flow trains only type 'trained'; set reward.type=trained"],
            source=config or run,
        )
    check_store(store)
    (policy,) = import_model(store, settings.policy, "policy")
    (prompts,) = draw_prompts(store, settings, policy)
    responses: list[Ref] = []
    if isinstance(reward.pairs, LabelledPairs):
        load_function(reward.pairs.function)
        responses = _initial_responses(store, settings, policy, prompts)
    (pairs,) = make_preferences(store, settings, reward, responses)
    (backbone,) = import_model(store, reward, "backbone")
    (trained,) = train_reward_model(store, settings, reward, backbone, pairs)
    show_reward_model(store, trained)
    return trained


def _initial_responses(store: str, settings: OptuneConfig, policy: Ref, prompts: Ref) -> list[Ref]:
    """Return shards of π_0's responses to all training prompts; iteration 0 finds the same ones committed."""
    counts = open_store(store).manifest(prompts).metrics
    context = RunContext(
        store=store,
        run=settings.name,
        config=settings.model_copy(update={"selection": All()}),
        policy=policy,
        prompts=prompts,
        held_out_prompts=counts["held_out"],
    )
    (selected,) = select(context, 0, prompts)
    return generate(context, 0, policy, selected).selected
