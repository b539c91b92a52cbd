"""Before iteration 0: everything that can be wrong with a run's inputs is found here, before work is spent."""

from __future__ import annotations

from typing import Any

from optune_core.config.schema import ClassifierReward, FunctionReward, Model, OptuneConfig, TrainedReward
from optune_core.rewards import RewardRef, function_identity, load_function
from optune_core.stages import model, preferences, prompts, reward_model
from optune_core.storage import Ledger, Ref
from optune_core.storage.backends import check_conditional_writes
from tasks.support.stage import make, open_store, stage_task


@stage_task("check store")
def check_store(store: str) -> None:
    """Refuse a store that cannot be written, or whose commits would not be exclusive."""
    check_conditional_writes(open_store(store).objects)


@stage_task("check drift")
def check_drift(store: str, run: str, config: OptuneConfig) -> None:
    """Refuse to continue a run with another configuration than it was created with."""
    Ledger(open_store(store).objects, run).check(config.model_dump(mode="json"))


@stage_task("import model", "import {role}")
def import_model(store: str, source: Model, role: str) -> Any:
    """A policy or reward model enters the store."""
    named = Model(model=source.model, revision=source.revision)
    return make(store, "model", model.Spec(model=named, role=role))


@stage_task("draw prompts")
def draw_prompts(store: str, config: OptuneConfig, policy: Ref) -> Any:
    """The fixed prompt set."""
    return make(store, "prompts", prompts.Spec(prompts=config.prompts, seed=config.seed, policy=policy.to_json()))


@stage_task("label pairs")
def make_preferences(store: str, config: OptuneConfig, reward: TrainedReward, responses: list[Ref]) -> Any:
    """Preference pairs for the reward model."""
    spec = preferences.Spec(
        pairs=reward.pairs,
        held_out_fraction=reward.held_out_fraction,
        seed=config.seed,
        responses=[ref.to_json() for ref in responses],
    )
    return make(store, "preferences", spec)


@stage_task("train reward model")
def train_reward_model(store: str, config: OptuneConfig, reward: TrainedReward, backbone: Ref, pairs: Ref) -> Any:
    """A Bradley-Terry reward model (Eq. 1)."""
    spec = reward_model.Spec(reward=reward, seed=config.seed, backbone=backbone.to_json(), preferences=pairs.to_json())
    return make(store, "reward-model", spec)


def classifier_ref(reward: ClassifierReward | TrainedReward, artifact: Ref) -> RewardRef:
    """A reward model in the store as later stages take it."""
    return RewardRef(type="classifier", model=artifact.to_json(), batch_size=reward.batch_size, dtype=reward.dtype)


def function_ref(reward: FunctionReward) -> RewardRef:
    """A reward function as later stages take it. Raises ConfigError if it cannot be imported."""
    load_function(reward.function)
    return RewardRef(type="function", function=reward.function, identity=function_identity(reward.function))
