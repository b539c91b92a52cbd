"""The engine `vllm`, on GPUs and CPUs by the same code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optune_core.generation.engine import Engine, Request, Response, SamplingParameters


class VllmEngine(Engine):
    """vLLM without a server, in the process of the stage."""

    type: Literal["vllm"] = "vllm"
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of a GPU's memory that an engine takes."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of devices that one engine is spread over. Raise it for a policy that is too large for one device;
    otherwise more `replicas` are faster."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Largest number of sequences that an engine samples at the same time."""
    enforce_eager: bool = False
    """True: the model is not compiled. The engine starts sooner and generates more slowly, which on a CPU is faster in
    total up to a few ten thousand tokens."""
    cpu_kv_cache_gib: int = Field(default=2, ge=1)
    """Size of the key-value cache in GiB if vLLM runs on a CPU."""
    repeatable: bool = True
    """True: shards are sampled one after another, so a run that was killed and resumed gets bit for bit the responses
    of an uninterrupted run. False: requests of the next shards enter the engine while the last ones of a shard still
    run, which is faster; a shard that is sampled again after a kill then is a different, equally valid sample of the
    same policy, since its batches differ and so do roundings. The field is part of a shard's key, so a repeatable run
    never uses shards of a run that is not repeatable."""

    @property
    def devices(self) -> int:
        return self.tensor_parallel_size

    @property
    def sequences(self) -> int:
        return self.max_num_seqs

    def start(self, parameters: SamplingParameters, model: Path, *, max_tokens: int) -> VllmSampler:
        return VllmSampler(parameters, self, model, max_tokens)


class VllmSampler:
    """A started vLLM. If it is repeatable, its responses to a shard depend only on the shard.

    The engine core runs in this process. In a separate process, batches would depend on the arrival times of requests.
    """

    def __init__(self, config: SamplingParameters, engine: VllmEngine, model: Path, max_tokens: int) -> None:
        set_environment(engine)
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu: dict[str, Any] = {}
        self._top_p = config.top_p
        if current_platform.is_cpu():
            from optune_core.generation.vllm_nucleus import Nucleus

            self._top_p = 1.0  # vLLM's own, since our processor has cut the logits to the nucleus
            # A chunked prefill with per-request seeds crashes the CPU engine ("CPU Generator does not use offset").
            # Samples share only complete blocks of their prompt, and most prompts are shorter than the CPU's default
            # block of 128 tokens.
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
        """Answer requests. As many as can run do, and as many again wait in the engine; more would only take memory."""
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
            logprobs=0 if self._config.logps else None,  # 0: of the sampled token only
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
    """Set the environment variables that vLLM reads, unless the user has set them."""
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
