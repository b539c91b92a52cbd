"""What a run will take, before it is started: a cost model of the stages, and its fit to measured runs."""

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
