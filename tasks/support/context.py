"""The context of a run, which its tasks are given."""

from __future__ import annotations

from pydantic import BaseModel

from optune_core.config import OptuneConfig
from optune_core.rewards import ReadyReward
from optune_core.storage import Ref


class RunContext(BaseModel):
    """A prepared run: its configuration, where it is stored, and the artifacts that all iterations read."""

    store: str
    """Folder or s3://bucket/prefix."""
    run: str
    """Name of the run."""
    config: OptuneConfig
    train_deployment: str | None = None
    """Deployment of flow `train` on the GPU pool, as flow/name; None: a child process of this machine trains."""
    policy: Ref
    """π_0, the policy that the run starts from."""
    prompts: Ref
    """The prompt set of the run."""
    held_out_prompts: int
    """Number of held-out prompts."""
    reward: ReadyReward | None = None
    """The proxy, which is optimised; None until a reward of type `trained` has been trained."""
    gold: ReadyReward | None = None
    """A second reward for reporting only; None: there is none."""
