"""Devices: published peak rates, the assumed share of them that a stage reaches, and fitted corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optune_core.errors import OptuneError

BANDWIDTH_SHARE = 0.75
"""Assumed share of the peak memory bandwidth that decoding reaches."""
PREFILL_SHARE = 0.6
"""Assumed share of the peak FLOP/s that prefill reaches, whose matrix products are large."""
DECODE_SHARE = 0.5
"""Assumed share of the peak FLOP/s that decoding with a full batch reaches, whose matrix products are thin."""
TRAINING_SHARE = 0.4
"""Assumed share of the peak FLOP/s that training and the reference pass reach, exchange of gradients included."""
SCORING_SHARE = 0.4
"""Assumed share of the peak FLOP/s that scoring reaches, padding counted as waste."""


@dataclass(frozen=True)
class Device:
    """Effective rates of one device, and the corrections of a fit."""

    name: str
    bandwidth: float
    """Memory bandwidth in bytes/s."""
    prefill: float
    """Rate of prefill in FLOP/s."""
    decode: float
    """Rate of decoding in FLOP/s."""
    training: float
    """Rate of training and of the reference pass in FLOP/s."""
    scoring: float
    """Rate of scoring in FLOP/s."""
    storage: float
    """Rate between disk and device in bytes/s: loading weights, saving a policy."""
    start_seconds: float
    """Seconds that vLLM takes to start besides loading weights: imports, profiling, compilation, CUDA graphs."""
    step_seconds: float
    """Seconds of vLLM's scheduler and launches per decoding step."""
    token_seconds: float
    """Seconds of sampling and bookkeeping per sampled token."""
    eager_step_seconds: float
    """Overhead in seconds per decoding step of transformers' `generate`, which launches every kernel separately."""
    memory: float | None
    """Memory of the device in bytes; None: the host's memory, where `cpu_kv_cache_gib` bounds vLLM's cache."""
    row_seconds: float = 5e-4
    """Seconds of ranking and merging per prompt."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Measured over predicted seconds by stage; 1 for a stage that is not listed."""


def _gpu(name: str, flops: float, bandwidth: float, memory: float) -> Device:
    """Make a GPU from its published dense bfloat16 FLOP/s, bandwidth in bytes/s and memory in bytes.

    Values that no data sheet has are assumed, and the same for all GPUs.
    """
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
        # Two cores of a server: fitted to the demo (`python -m tests.benchmarks.projection`), except for the ratio of
        # bandwidth to FLOP/s, which cannot be determined from one model.
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
    """Return the device of this name.

    Raises:
        OptuneError: the name is unknown; the message lists the known ones.
    """
    if name not in _DEVICES:
        raise OptuneError(
            f"--device {name!r} is unknown: choose one of {', '.join(_DEVICES)}, or the one most similar to yours "
            "together with a run made on yours (--run)"
        )
    return _DEVICES[name]
