"""Devices: published peaks, the share of them that we assume a stage reaches, and what was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optune_core.errors import OptuneError

BANDWIDTH_SHARE = 0.75
"""Assumed: share of the peak memory bandwidth that decoding reaches."""
PREFILL_SHARE = 0.6
"""Assumed: share of the peak FLOP/s in prefill, one long matrix product after the other."""
DECODE_SHARE = 0.5
"""Assumed: the same in decoding with a full batch, whose products are thin."""
TRAINING_SHARE = 0.4
"""Assumed: the same in training, with the exchange of gradients, and in the reference pass."""
SCORING_SHARE = 0.4
"""Assumed: the same in scoring, with what its padding wastes."""


@dataclass(frozen=True)
class Device:
    """Effective rates of one device. `factors` are what a fit corrects them by."""

    name: str
    bandwidth: float
    """Bytes of memory a second."""
    prefill: float
    """FLOP/s, as the three below."""
    decode: float
    training: float
    scoring: float
    storage: float
    """Bytes a second between disk and device: loading weights, saving a policy."""
    start_seconds: float
    """Start of vLLM besides loading the weights: imports, profiling, compilation, CUDA graphs."""
    step_seconds: float
    """Of vLLM's scheduler and launches, for every decoding step."""
    token_seconds: float
    """Of sampling and bookkeeping, for every sampled token."""
    eager_step_seconds: float
    """Of a decoding step of `generate`, which launches every kernel by itself."""
    memory: float | None
    """Bytes on the device; None: the host's, where `cpu_kv_cache_gib` bounds vLLM's cache."""
    row_seconds: float = 5e-4
    """Of ranking and merging, for every prompt."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds over predicted ones by stage; 1 where there is none."""


def _gpu(name: str, flops: float, bandwidth: float, memory: float) -> Device:
    """A GPU from its published dense bfloat16 FLOP/s and bytes/s. What no data sheet has is assumed alike for all."""
    return Device(
        name=name,
        bandwidth=BANDWIDTH_SHARE * bandwidth,
        prefill=PREFILL_SHARE * flops,
        decode=DECODE_SHARE * flops,
        training=TRAINING_SHARE * flops,
        scoring=SCORING_SHARE * flops,
        storage=1e9,
        start_seconds=45.0,
        step_seconds=5e-3,
        token_seconds=50e-6,
        eager_step_seconds=30e-3,
        memory=memory,
    )


_DEVICES = {
    device.name: device
    for device in (
        _gpu("a100-80gb", 312e12, 2.039e12, 80e9),
        _gpu("h100", 989e12, 3.35e12, 80e9),
        # Two cores of a server: fitted to the demo (`python -m tests.benchmarks.projection`), but for the ratio of
        # bandwidth to FLOP/s, which one model cannot tell.
        Device(
            name="cpu",
            bandwidth=9e9,
            prefill=180e9,
            decode=92e9,
            training=170e9,
            scoring=345e9,
            storage=0.5e9,
            start_seconds=17.0,
            step_seconds=5e-3,
            token_seconds=200e-6,
            eager_step_seconds=30e-3,
            memory=None,
        ),
    )
}


def named_device(name: str) -> Device:
    """A device by its name.

    Raises:
        OptuneError: there is none of that name.
    """
    if name not in _DEVICES:
        raise OptuneError(
            f"--device {name!r} is not known: choose one of {', '.join(_DEVICES)}, or the one closest to yours "
            "and a run made on yours with --run"
        )
    return _DEVICES[name]
