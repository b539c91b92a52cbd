"""Engines that sample responses: one interface for vLLM (GPU and CPU) and transformers.

engine         base of all engines, and the requests and responses that they exchange with stages
registry       engines by the `type` that a configuration gives them
section        the section `generation`
vllm           vLLM, on GPUs and CPUs
vllm_nucleus   top_p for vLLM on CPUs
transformers   the engine `transformers`; transformers_sampler samples for it
nucleus        nucleus sampling without sorting complete vocabularies

To add one, write a class in a file here that derives from `Engine`, and its line in `registry`.
"""

from optune_core.generation.engine import Engine, Request, Response, Sampler, SamplingParameters, sampling_seed

__all__ = ["Engine", "Request", "Response", "Sampler", "SamplingParameters", "sampling_seed"]
