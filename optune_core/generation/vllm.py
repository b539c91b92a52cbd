"""vLLM, on GPUs and CPUs by the same code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from optune_core.config.schema import Generation, VllmEngine
from optune_core.generation.engine import Request, Response


class VllmGeneration:
    """Offline vLLM. Repeatable, its answers to a shard depend on nothing but the shard.

    The engine core runs in this process: in a process of its own, batches would depend on when requests arrive.
    """

    def __init__(self, config: Generation, engine: VllmEngine, model: Path, max_tokens: int) -> None:
        set_environment(engine)
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu: dict[str, Any] = {}
        self._top_p = config.top_p
        if current_platform.is_cpu():
            from optune_core.generation.vllm_nucleus import Nucleus

            self._top_p = 1.0  # for vLLM: the nucleus is kept before it samples
            # A chunked prefill with per-request seeds ends the CPU engine ("CPU Generator does not use offset").
            # Samples share whole blocks of their prompt, and the CPU's default of 128 tokens exceeds most prompts.
            on_cpu = {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(4096, max_tokens),
                "block_size": 32,
                "logits_processors": [Nucleus],
                "additional_config": {"top_p": config.top_p},
            }
        self._config = config
        self._engine = engine
        self._llm = LLM(
            model=str(model),
            dtype=engine.dtype,
            max_model_len=max_tokens,
            max_num_seqs=engine.max_num_seqs,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            tensor_parallel_size=engine.tensor_parallel_size,
            enforce_eager=engine.enforce_eager,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",  # before temperature and top_p
            seed=0,
            **on_cpu,
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        if not self._engine.repeatable:
            yield from self._answer(requests)
            return
        for _, shard in groupby(requests, key=lambda request: request.shard):
            self._llm.reset_prefix_cache()
            yield from self._answer(shard)

    def _answer(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Requests enter as others leave. All that can run do, and as many wait: more would only take memory."""
        waiting = iter(requests)
        entered: dict[str, Request] = {}
        while True:
            for request in islice(waiting, 2 * self._engine.max_num_seqs - len(entered)):
                name = f"{request.shard}/{request.index}"
                self._llm.llm_engine.add_request(
                    name, {"prompt_token_ids": request.prompt_token_ids}, self._params(request)
                )
                entered[name] = request
            if not entered:
                return
            for output in self._llm.llm_engine.step():
                yield _response(entered.pop(output.request_id), output)

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self._config.temperature,
            top_p=self._top_p,
            max_tokens=self._config.max_tokens,
            seed=request.seed,
            logprobs=0 if self._config.logps else None,  # of the sampled token alone
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _response(request: Request, output: Any) -> Response:
    (completion,) = output.outputs
    return Response(
        shard=request.shard,
        index=request.index,
        token_ids=list(completion.token_ids),
        text=completion.text,
        finish_reason="stop" if completion.finish_reason == "stop" else "length",
        logp=completion.cumulative_logprob,
    )


def set_environment(engine: VllmEngine) -> None:
    """Settings that vLLM reads from the environment, where the user has not set them."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.cpu_kv_cache_gib),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # vLLM 0.32 cannot load what it compiled ahead of time on a CPU, and compiles at every start.
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
