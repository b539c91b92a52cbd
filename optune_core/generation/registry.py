"""Registry of the engines: `type` in a configuration → class."""

from __future__ import annotations

from optune_core.generation.engine import Engine
from optune_core.parts.registry import Registry

ENGINES = Registry(
    "engine",
    Engine,
    {
        "vllm": "optune_core.generation.vllm:VllmEngine",
        "transformers": "optune_core.generation.transformers:TransformersEngine",
    },
    default="vllm",
)
