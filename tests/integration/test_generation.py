"""Both engines against plain sampling and plain log-probabilities; runs with vLLM are in test_pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from optune_core.data.schemas import PROMPTS, RESPONSES, read_table, write_table
from optune_core.data.shards import RESPONSES_FILE
from optune_core.errors import TransientError
from optune_core.generation import Request, Response, sampling_seed
from optune_core.generation.nucleus import keep_nucleus
from optune_core.generation.section import Generation, Sampling
from optune_core.generation.transformers_sampler import TransformersSampler
from optune_core.generation.vllm import VllmEngine
from optune_core.process.progress import silent
from optune_core.stages import responses
from optune_core.stages.launch import run_stage
from optune_core.storage import ArtifactStore, Work, open_objects

pytestmark = pytest.mark.slow

VLLM = VllmEngine(dtype="float32", max_num_seqs=4, enforce_eager=True, cpu_kv_cache_gib=1, gpu_memory_utilization=0.2)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny / "policy"


def engine(model: Path, batch_size: int = 4, **changes: float) -> TransformersSampler:
    settings = Generation(**{"max_tokens": 10, "temperature": 1.0, "top_p": 0.9} | changes)
    return TransformersSampler(settings, model, batch_size=batch_size, dtype="float32")


def shard_of(shard: int, size: int = 7) -> list[Request]:
    return [
        Request(shard, index, [5 + index] * (1 + index % 3), sampling_seed(shard, 0, f"p{index // 2}", index % 2))
        for index in range(size)
    ]


REQUESTS = shard_of(0)


def plain_logits(model: Path, requests: list[Request], responses: list[Response]) -> Iterator[torch.Tensor]:
    """Yield the float32 logits of each response, (tokens, vocabulary), from one plain forward pass each."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for request, response in zip(requests, responses, strict=True):
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([request.prompt_token_ids + response.token_ids])).logits
        yield logits[0, len(request.prompt_token_ids) - 1 : -1]


def float32_logps(model: Path, requests: list[Request], responses: list[Response]) -> list[float]:
    """Return log π(y|x) of each response."""
    logps = []
    for response, logits in zip(responses, plain_logits(model, requests, responses), strict=True):
        logps.append(float(logits.log_softmax(-1).gather(-1, torch.tensor(response.token_ids)[:, None]).sum()))
    return logps


def answers(model: Path, requests: list[Request] = REQUESTS, **changes: float) -> dict[int, list[int]]:
    found = {response.index: response.token_ids for response in engine(model, **changes).generate(requests)}
    assert sorted(found) == [request.index for request in requests]
    return found


def test_a_response_does_not_depend_on_its_batch(model: Path) -> None:
    alone = {}
    for request in REQUESTS:
        alone |= answers(model, [request], batch_size=1)
    assert answers(model, batch_size=4) == alone


def test_samples_of_a_prompt_differ_and_are_reproduced_by_their_seeds(model: Path) -> None:
    found = answers(model)
    assert found[0] != found[1]
    assert found == answers(model)
    assert sampling_seed(0, 0, "p", 0) != sampling_seed(0, 1, "p", 0) != sampling_seed(1, 0, "p", 0)


def test_sampling_from_a_tiny_nucleus_is_greedy(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = list(REQUESTS[2].prompt_token_ids)
    for _ in range(10):
        ids.append(int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == plain.config.eos_token_id:
            break
    greedy = ids[len(REQUESTS[2].prompt_token_ids) :]
    assert answers(model, top_p=1e-6)[2] == greedy


def test_the_finish_reason_distinguishes_an_end_from_a_cut(model: Path) -> None:
    stop = engine(model)._stop
    for response in engine(model).generate(REQUESTS):
        assert response.finish_reason == ("stop" if response.token_ids[-1] in stop else "length")
        assert len(response.token_ids) == 10 or response.finish_reason == "stop"


def noting(shards: int, taken: list[int]) -> Iterator[Request]:
    """Yield requests of this many shards, and note the shard of each one that is read."""
    for shard in range(shards):
        for request in shard_of(shard):
            taken.append(shard)
            yield request


def test_requests_of_a_shard_are_read_only_when_it_is_its_turn(model: Path) -> None:
    taken: list[int] = []
    answered = []
    for response in engine(model).generate(noting(3, taken)):
        answered.append(response.shard)
        assert len(taken) <= 7 * (response.shard + 1) + 1
    assert answered == [0] * 7 + [1] * 7 + [2] * 7


def test_log_probabilities_are_those_of_a_plain_forward_before_temperature_and_top_p(model: Path) -> None:
    assert all(response.logp is None for response in engine(model).generate(REQUESTS))
    found = sorted(engine(model, logps=True, temperature=0.7).generate(REQUESTS), key=lambda response: response.index)
    assert [response.logp for response in found] == pytest.approx(float32_logps(model, REQUESTS, found), abs=1e-4)


@pytest.fixture(scope="module")
def vllm(model: Path) -> Any:
    """Start one engine for all tests; it looks up `repeatable` at each call."""
    return VLLM.start(Generation(max_tokens=10, logps=True, engine=VLLM), model, max_tokens=64)


def vllm_answers(vllm: Any, requests: list[Request], *, repeatable: bool) -> list[Response]:
    vllm._engine = vllm._engine.model_copy(update={"repeatable": repeatable})
    return list(vllm.generate(requests))


def test_vllm_streaming_answers_all_requests_and_reads_few_ahead(vllm: Any) -> None:
    vllm._engine = vllm._engine.model_copy(update={"repeatable": False})
    taken: list[int] = []
    answered: list[tuple[int, int]] = []
    overlaps = 0
    for response in vllm.generate(noting(5, taken)):
        # A step may answer all that run before any is seen here; those that wait are as many again.
        assert len(taken) - len(answered) <= 8
        answered.append((response.shard, response.index))
        overlaps += taken[-1] > response.shard
    assert sorted(answered) == [(shard, index) for shard in range(5) for index in range(7)]
    assert overlaps > 0


def test_vllm_repeatable_gives_a_shard_the_same_answers_wherever_it_starts(vllm: Any) -> None:
    all_shards = [*shard_of(0), *shard_of(1), *shard_of(2)]
    found = vllm_answers(vllm, all_shards, repeatable=True)
    assert [response.shard for response in found] == [0] * 7 + [1] * 7 + [2] * 7
    assert vllm_answers(vllm, shard_of(1), repeatable=True) == found[7:14]


def test_vllm_samples_of_a_prompt_share_its_prefix(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cached: dict[str, int] = {}
    step = vllm._llm.llm_engine.step

    def noting() -> Any:
        outputs = step()
        cached.update({output.request_id: output.num_cached_tokens for output in outputs})
        return outputs

    monkeypatch.setattr(vllm._llm.llm_engine, "step", noting)
    prompts = [[5 + prompt, *range(3, 42)] for prompt in range(3)]
    requests = [Request(0, index, prompts[index // 2], seed=index) for index in range(6)]
    vllm_answers(vllm, requests, repeatable=True)
    assert cached == {f"0/{index}": 32 * (index % 2) for index in range(6)}, "a block of 32 tokens, by every second one"


@pytest.mark.parametrize("repeatable", [True, False])
def test_vllm_log_probabilities_are_those_of_a_plain_forward(vllm: Any, model: Path, repeatable: bool) -> None:
    requests = [*shard_of(0), *shard_of(1)]
    found = sorted(
        vllm_answers(vllm, requests, repeatable=repeatable), key=lambda response: (response.shard, response.index)
    )
    assert [response.logp for response in found] == pytest.approx(float32_logps(model, requests, found), abs=1e-3)


def test_vllm_samples_from_the_nucleus_at_the_temperature(
    vllm: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_config", vllm._config.model_copy(update={"temperature": 0.2}))
    requests = [*shard_of(0), *shard_of(1), *shard_of(2)]
    found = sorted(vllm_answers(vllm, requests, repeatable=True), key=lambda response: (response.shard, response.index))
    assert sum(len(response.token_ids) for response in found) > 100, "of which a tenth would lie outside, uncut"
    for response, logits in zip(found, plain_logits(model, requests, found), strict=True):
        # A hair more than the engine's 0.9, which may round otherwise at the edge.
        nucleus = keep_nucleus(logits / 0.2, 0.901).isfinite()
        assert nucleus.gather(-1, torch.tensor(response.token_ids)[:, None]).all()


def test_a_killed_streaming_stage_keeps_its_shards_and_makes_the_rest(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(open_objects(str(tmp_path / "store")))
    table = pa.Table.from_pylist(
        [{"prompt_id": f"p{row}", "prompt": "", "messages": [], "prompt_token_ids": [5 + row]} for row in range(22)],
        schema=PROMPTS,
    )
    with store.scratch() as scratch:
        shutil.copytree(model, scratch / "model")
        policy = store.commit(Work("model", 1, {}), scratch).ref
    with store.scratch() as scratch:
        write_table(table, PROMPTS, scratch / "prompts.parquet")
        prompts = store.commit(Work("prompts", 1, {}), scratch).ref
    engine = VLLM.model_copy(update={"repeatable": False})
    jobs = [
        responses.GenerationJob(prompts=prompts, file="prompts.parquet", rows=rows, samples=samples)
        for rows, samples in ((22, 2), (6, 1))
    ]
    spec = responses.Spec(
        sampling=Sampling(max_tokens=10, shard_size=5, engine=engine),
        max_prompt_tokens=16,
        seed=0,
        iteration=0,
        policy=policy,
        jobs=jobs,
    )
    (tmp_path / "plan").write_text("kill create.after/responses\n")
    monkeypatch.setenv("OPTUNE_FAILPOINTS", str(tmp_path))
    with pytest.raises(TransientError, match="signal 9"):
        run_stage(store, "responses", spec, silent, lambda line: None)
    kept = [manifest for work in responses.works(store, spec) if (manifest := store.find(work)) is not None]
    assert 1 <= len(kept) < 7
    made = run_stage(store, "responses", spec, silent, lambda line: None)
    assert [manifest for manifest in made if manifest in kept] == kept
    rows = [
        (job, row["prompt_id"], row["sample"])
        for manifest, job in zip(made, [0] * 5 + [1] * 2, strict=True)
        for row in read_table(store.fetch(manifest.ref) / RESPONSES_FILE, RESPONSES).to_pylist()
    ]
    expected = [(0, f"p{row}", sample) for row in range(22) for sample in range(2)]
    assert rows == expected + [(1, f"p{row}", 0) for row in range(6)]
