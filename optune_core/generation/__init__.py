"""Engines that sample responses: one interface, vLLM (GPU and CPU) and transformers."""

from optune_core.generation.engine import Engine, Request, Response, open_engine, sampling_seed

__all__ = ["Engine", "Request", "Response", "open_engine", "sampling_seed"]
