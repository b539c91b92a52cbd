"""GPUs of this machine, and how processes that work side by side divide them. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from optune_core.errors import ConfigError

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_PRESENT = Path("/proc/driver/nvidia/gpus")


def visible_devices() -> list[str]:
    """Return the GPUs that a child of this process sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    return device_names(os.environ.get(_VARIABLE), len(list(_PRESENT.glob("*"))))


def device_names(visible: str | None, present: int) -> list[str]:
    """Return the names of the GPUs that CUDA uses.

    Args:
        visible: value of CUDA_VISIBLE_DEVICES; CUDA uses the entries before the first invalid one (`-1` or empty).
            None: the variable is not set.
        present: number of GPUs of the machine.
    """
    if visible is None:
        return [str(number) for number in range(present)]
    return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in visible.split(","))))


@dataclass(frozen=True)
class Replicas:
    """Processes that do the same kind of work side by side, each on its own devices."""

    section: str
    """Section of the configuration that describes them, such as `generation.engine`."""
    wanted: int | None
    """Value of `replicas` in that section; None: as many as there are devices for, and at least one."""
    devices: int
    """Number of devices that each process needs."""

    def number(self, devices: int) -> int:
        """Return the number of processes on a machine with this many devices. Without devices, they share its CPU.

        Raises:
            ConfigError: the processes need more devices than there are.
        """
        number = self.wanted or max(1, devices // self.devices)
        if 0 < devices < number * self.devices:
            raise ConfigError(
                [
                    f"{self.section}: {number} × {self.devices} devices (replicas × tensor_parallel_size) are "
                    f"{number * self.devices}, but only {devices} are visible: lower one of the two, leave "
                    f"replicas out, or check {_VARIABLE}"
                ],
                source="devices of this machine",
            )
        return number

    def environment(self, number: int, visible: Sequence[str]) -> dict[str, str]:
        """Return the environment variable that gives the process of this number its part of the visible devices."""
        if not visible:
            return {}
        return {_VARIABLE: ",".join(visible[number * self.devices : (number + 1) * self.devices])}
