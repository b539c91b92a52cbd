"""Context that every task of a run gets."""

from __future__ import annotations

from pydantic import BaseModel

from optune_core.config import OptuneConfig
from optune_core.rewards import RewardRef


class RunContext(BaseModel):
    """A prepared run: its configuration, where it is stored, and the artifacts that all iterations read."""

    store: str
    run: str
    config: OptuneConfig
    train_deployment: str | None = None
    """Deployment of flow `train` on the GPU pool; None: train in a child process on this machine."""
    policy: dict[str, str]
    """Reference to the artifact of π_0."""
    prompts: dict[str, str]
    """Reference to the artifact of the prompts."""
    held_out_prompts: int
    """Number of held-out prompts."""
    reward: RewardRef | None = None
    """Proxy reward that is optimised; None as long as its reward model is not trained."""
    gold: RewardRef | None = None
    """Gold reward, which is only reported."""
