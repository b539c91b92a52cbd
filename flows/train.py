"""Flow `train`: the training of one policy, run by workers of the GPU work pool."""

# No `from __future__ import annotations` here: Prefect validates parameters by their types, not by strings.

from prefect import flow

from optune_core.storage import Ref
from optune_core.training.spec import Spec
from tasks.support.logs import quiet_known_errors
from tasks.train import train_here


@flow(name="train", flow_run_name="train iteration {spec.iteration}")
def train(store: str, spec: Spec) -> Ref:
    """Train one policy with as many processes as this machine has GPUs; flow `optune` launches this.

    Args:
        store: folder or s3://bucket/prefix of the artifacts.
        spec: spec of the stage `policy`.

    Returns:
        Reference to the policy's artifact.
    """
    quiet_known_errors()
    (policy,) = train_here(store, spec)
    trained: Ref = policy
    return trained
