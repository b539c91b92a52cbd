"""Tasks before iteration 0, which find problems with a run's inputs before anything is computed."""

from __future__ import annotations

from typing import Any

from optune_core.config import OptuneConfig
from optune_core.data.model_folder import Model
from optune_core.rewards import ReadyReward, Reward
from optune_core.rewards.reward import ModelRole
from optune_core.rewards.trained import TrainedReward
from optune_core.stages import model, preferences, prompts, reward_model
from optune_core.storage import Ledger, Ref
from optune_core.storage.backends import check_conditional_writes
from tasks.support.stage import make, open_store, stage_task


@stage_task("check store")
def check_store(store: str) -> None:
    """Check that the store can be written, and that of two concurrent commits only one succeeds."""
    check_conditional_writes(open_store(store).objects)


@stage_task("check drift")
def check_drift(store: str, run: str, config: OptuneConfig) -> None:
    """Check that the run was created with this configuration, but for fields that may change in a run.

    Raises:
        ConfigDrift: the run was created with another configuration.
    """
    Ledger(open_store(store).objects, run).check(config)


@stage_task("import model", "import {role}")
def import_model(store: str, source: Model, role: ModelRole) -> Any:
    """Bring a policy, a reward model or the backbone of one into the store."""
    named = Model(model=source.model, revision=source.revision)
    return make(store, "model", model.Spec(model=named, role=role))


@stage_task("draw prompts")
def draw_prompts(store: str, config: OptuneConfig, policy: Ref) -> Any:
    """Draw the fixed prompt set of the run."""
    return make(store, "prompts", prompts.Spec(prompts=config.prompts, seed=config.seed, policy=policy))


@stage_task("label pairs")
def make_preferences(store: str, config: OptuneConfig, reward: TrainedReward, responses: list[Ref]) -> Any:
    """Make the preference pairs that a reward model is trained on."""
    spec = preferences.Spec(
        pairs=reward.pairs,
        held_out_fraction=reward.held_out_fraction,
        seed=config.seed,
        responses=responses,
    )
    return make(store, "preferences", spec)


@stage_task("train reward model")
def train_reward_model(store: str, config: OptuneConfig, reward: TrainedReward, backbone: Ref, pairs: Ref) -> Any:
    """Train a Bradley-Terry reward model (Eq. 1)."""
    spec = reward_model.Spec(reward=reward, seed=config.seed, backbone=backbone, preferences=pairs)
    return make(store, "reward-model", spec)


def ready_reward(store: str, reward: Reward) -> ReadyReward:
    """Make a reward ready to score; if it uses a model, bring that into the store.

    Raises:
        OptuneError: the reward or its model cannot be used.
    """
    if reward.model_role is None:
        return ReadyReward.of(reward)
    assert isinstance(reward, Model), "a reward with a role for a model names one"
    (model,) = import_model(store, reward, reward.model_role)
    return ReadyReward.of(reward, model)
