"""The transformers engine against plain sampling; vLLM is exercised by the pipeline's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optune_core.config.schema import Generation, TransformersEngine
from optune_core.generation import Request, sampling_seed
from optune_core.generation.transformers import TransformersGeneration

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny / "policy"


def engine(model: Path, batch_size: int = 4, **changes: float) -> TransformersGeneration:
    settings = Generation(**{"max_tokens": 10, "temperature": 1.0, "top_p": 0.9} | changes)
    return TransformersGeneration(settings, TransformersEngine(dtype="float32", batch_size=batch_size), model)


REQUESTS = [
    Request(0, index, [5 + index] * (1 + index % 3), sampling_seed(0, 0, f"p{index // 2}", index % 2))
    for index in range(7)
]


def answers(model: Path, requests: list[Request] = REQUESTS, **changes: float) -> dict[int, list[int]]:
    found = {response.index: response.token_ids for response in engine(model, **changes).generate(requests)}
    assert sorted(found) == [request.index for request in requests]
    return found


def test_a_response_does_not_depend_on_its_company(model: Path) -> None:
    alone = {}
    for request in REQUESTS:
        alone |= answers(model, [request], batch_size=1)
    assert answers(model, batch_size=4) == alone


def test_samples_of_a_prompt_differ_and_seeds_decide(model: Path) -> None:
    found = answers(model)
    assert found[0] != found[1]
    assert found == answers(model)
    assert sampling_seed(0, 0, "p", 0) != sampling_seed(0, 1, "p", 0) != sampling_seed(1, 0, "p", 0)


def test_tiny_nucleus_is_greedy(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = list(REQUESTS[2].prompt_token_ids)
    for _ in range(10):
        ids.append(int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == plain.config.eos_token_id:
            break
    greedy = ids[len(REQUESTS[2].prompt_token_ids) :]
    assert answers(model, top_p=1e-6)[2] == greedy


def test_finish_reason_tells_an_end_from_a_cut(model: Path) -> None:
    stop = engine(model)._stop
    for response in engine(model).generate(REQUESTS):
        assert response.finish_reason == ("stop" if response.token_ids[-1] in stop else "length")
        assert len(response.token_ids) == 10 or response.finish_reason == "stop"
