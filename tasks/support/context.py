"""What every task of a run needs to know."""

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
    """Deployment of flow `train` on the GPU pool; None trains in a child process here."""
    policy: dict[str, str]
    """Reference to π_0."""
    prompts: dict[str, str]
    held_out_prompts: int
    reward: RewardRef | None = None
    """The proxy that is optimised; None while it is yet to be trained."""
    gold: RewardRef | None = None
    """Reported only."""
