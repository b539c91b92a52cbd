"""Flow `train`: what the GPU work pool runs."""

# No `annotations` from the future here: Prefect validates parameters by the types themselves, wherever it loads this.

from prefect import flow

from optune_core.training.spec import Spec
from tasks.support.logs import quiet_known_errors
from tasks.train import train_here


@flow(name="train", flow_run_name="train iteration {spec.iteration}")
def train(store: str, spec: Spec) -> dict[str, str]:
    """Train one policy with as many processes as this machine has GPUs; flow `optune` launches this.

    Args:
        store: where the artifacts are.
        spec: what the stage `policy` is asked for.

    Returns:
        Reference to the policy's artifact.
    """
    quiet_known_errors()
    (policy,) = train_here(store, spec)
    return dict(policy.to_json())
