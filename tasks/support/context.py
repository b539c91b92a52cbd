"""What every task of a run needs to know."""

from __future__ import annotations

from pydantic import BaseModel

from optune_core.config import OptuneConfig
from optune_core.rewards import ReadyReward
from optune_core.storage import Ref


class RunContext(BaseModel):
    """A prepared run: its configuration, where it is stored, and the artifacts that all iterations read."""

    store: str
    run: str
    config: OptuneConfig
    train_deployment: str | None = None
    """Deployment of flow `train` on the GPU pool; None trains in a child process here."""
    policy: Ref
    """π_0."""
    prompts: Ref
    """The prompt set."""
    held_out_prompts: int
    reward: ReadyReward | None = None
    """The proxy that is optimised; None while it is yet to be trained."""
    gold: ReadyReward | None = None
    """Reported only."""
