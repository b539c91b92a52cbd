"""Check of a run's configuration against the devices of this machine."""

from __future__ import annotations

from optune_core.config.run import OptuneConfig
from optune_core.process.devices import visible_devices


def check_devices(config: OptuneConfig) -> None:
    """Check that engines and reward models fit on this machine's devices, before anything is computed.

    Raises:
        ConfigError: engines or reward models need more devices than the machine has.
    """
    devices = len(visible_devices())
    for replicas in (config.generation.engine.side_by_side("generation.engine"), config.reward.side_by_side()):
        if replicas is not None:
            replicas.number(devices)
