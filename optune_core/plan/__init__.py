"""Prediction of a run's time before it is started: a cost model of the stages, and its fit to measured runs.

shape       shape of a dense decoder: its weights, layers and widths
devices     effective rates of devices: published peaks times assumed shares
cost        seconds of each stage of an iteration
projection  seconds of a complete run from its configuration
fit         corrections of a device's rates from a run's iterations
"""

from optune_core.plan.cost import STAGES, Workload, stage_seconds
from optune_core.plan.devices import Device, named_device
from optune_core.plan.fit import StageFit, fit_device
from optune_core.plan.projection import Projection, project, workload_of
from optune_core.plan.shape import ModelShape

__all__ = [
    "STAGES",
    "Device",
    "ModelShape",
    "Projection",
    "StageFit",
    "Workload",
    "fit_device",
    "named_device",
    "project",
    "stage_seconds",
    "workload_of",
]
