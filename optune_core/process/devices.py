"""Which GPUs this machine has, and how processes that work side by side divide them. Knows no torch."""

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
    """The GPUs that a child of this process sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    return device_names(os.environ.get(_VARIABLE), len(list(_PRESENT.glob("*"))))


def device_names(visible: str | None, present: int) -> list[str]:
    """Names of the GPUs that CUDA uses.

    Args:
        visible: CUDA_VISIBLE_DEVICES, numbers or UUIDs up to the first that is none (`-1`, nothing); None: not set.
        present: GPUs of the machine.
    """
    if visible is None:
        return [str(number) for number in range(present)]
    return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in visible.split(","))))


@dataclass(frozen=True)
class Replicas:
    """Processes that do the same kind of work side by side, each on devices of its own."""

    section: str
    """Of the configuration, such as `generation.engine`."""
    wanted: int | None
    """`replicas` there; None: as many as there are devices for, at least one."""
    devices: int
    """That each of them needs."""

    def number(self, devices: int) -> int:
        """How many there are on a machine with this many devices; without any, its processors do what is asked.

        Raises:
            ConfigError: they need more devices than there are.
        """
        number = self.wanted or max(1, devices // self.devices)
        if 0 < devices < number * self.devices:
            raise ConfigError(
                [
                    f"{self.section}: {number} × {self.devices} devices (replicas × tensor_parallel_size) are "
                    f"{number * self.devices}, more than the {devices} that are visible: lower one of them, leave "
                    f"replicas out, or look at {_VARIABLE}"
                ],
                source="devices of this machine",
            )
        return number

    def environment(self, number: int, visible: Sequence[str]) -> dict[str, str]:
        """What the process of this number gets besides this one's environment: its part of the visible devices."""
        if not visible:
            return {}
        return {_VARIABLE: ",".join(visible[number * self.devices : (number + 1) * self.devices])}
