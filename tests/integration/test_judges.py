"""Judges over HTTP and by reward: both orders, retries, malformed replies, and resumption after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from optune_core.data.schemas import ANSWERS, COMPARISONS, read_table, write_table
from optune_core.errors import ConservationError, JudgeError, TransientError
from optune_core.evaluation.win_score import comparisons
from optune_core.evaluation.win_score import stand_in as stand_in_judge
from optune_core.evaluation.win_score.judge import Pair, RewardJudge
from optune_core.evaluation.win_score.opening import open_judge
from optune_core.evaluation.win_score.sections import OpenAIJudge
from optune_core.process.progress import silent
from optune_core.rewards import ReadyReward
from optune_core.rewards.classifier import ClassifierReward
from optune_core.rewards.function import FunctionReward
from optune_core.stages.launch import find_all
from optune_core.storage import ArtifactStore, Ref, Work, open_objects
from tests.fake_judge import FakeJudge, rate, score, serving
from tests.waiting import PATIENCE, until

PROMPTS, SHARD = 7, 2
KEY = "a-key-that-nobody-prints"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    monkeypatch.setenv("SOME_JUDGE", KEY)
    with serving() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


def chat(server: FakeJudge, **changes: Any) -> OpenAIJudge:
    return OpenAIJudge(type="openai", model="fake", base_url=server.url, api_key_env="SOME_JUDGE", **changes)


def stand_in(margin: float = 0.0, function: str = "tests.rewards:vowels") -> RewardJudge:
    return RewardJudge(reward=ReadyReward.of(FunctionReward(function=function)), tie_margin=margin)


def pairs(count: int) -> list[Pair]:
    return [Pair(i, f"Question {i}?", [], ("abc" * (i + 1), "the quick brown fox")) for i in range(count)]


def answers(store: ArtifactStore, side: str, prompts: list[int]) -> Ref:
    rows = [
        {
            "prompt_id": f"{i:032x}",
            "prompt": f"Question {i}?",
            "messages": [{"role": "user", "content": f"Question {i}?"}],
            "sample": sample,
            "response": f"{side} {'abcdefghijklmnopqrstuvwxyz'[: (5 * i * len(side)) % 23]}" if sample == 0 else "no",
        }
        for i in prompts
        for sample in range(2)
    ]
    with store.scratch() as folder:
        write_table(pa.Table.from_pylist(rows, schema=ANSWERS), ANSWERS, folder / "responses.parquet")
        return store.commit(Work("responses", 0, {"side": side, "prompts": prompts}), folder).ref


def spec_of(store: ArtifactStore, judge: Any) -> comparisons.Spec:
    return comparisons.Spec(
        judge=judge,
        prompts=PROMPTS,
        shard_size=SHARD,
        policies=[[answers(store, "policy", list(range(5))), answers(store, "policy", [5, 6])]],
        baseline=[answers(store, "the base", list(reversed(range(PROMPTS))))],
    )


def judged(store: ArtifactStore, spec: comparisons.Spec) -> list[dict[str, Any]]:
    manifests = find_all(store, "comparisons", spec)
    assert manifests is not None
    tables = [read_table(store.fetch(m.ref) / comparisons.FILE, COMPARISONS) for m in manifests]
    return [row for table in tables for row in table.to_pylist()]


def test_a_judge_is_asked_with_the_prompt_of_the_paper_and_limited_concurrency(server: FakeJudge) -> None:
    three_at_once = threading.Event()

    def reply(*asked: str) -> str:
        if server.most_at_once >= 3:
            three_at_once.set()
        assert three_at_once.wait(PATIENCE)
        time.sleep(0.05)  # for a fourth one to show
        return rate(*asked)

    server.reply = reply
    ratings = list(open_judge(chat(server, concurrency=3), None).rate(pairs(20)))
    assert sorted(rating.index for rating in ratings) == list(range(20))
    for rating in ratings:
        pair = pairs(20)[rating.index]
        assert rating.scores == (score(pair.answers[0]), score(pair.answers[1]))
        assert rating.explanation == f"Counted letters for {pair.prompt!r}."
        assert (rating.usage.requests, rating.usage.prompt_tokens) == (1, 100)
    assert server.keys == {f"Bearer {KEY}"}
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("fake", 0.0)}
    assert server.most_at_once == 3


def test_requests_are_repeated_after_429_and_5xx(server: FakeJudge) -> None:
    server.failures = [(429, {"message": "slow down"}), (500, {"message": "oops"}), (503, {"message": "later"})] * 2
    ratings = list(open_judge(chat(server, concurrency=4), None).rate(pairs(6)))
    assert sorted(rating.index for rating in ratings) == list(range(6))
    assert len(server.asked) == 6


def test_an_unreachable_server_is_a_transient_error(server: FakeJudge) -> None:
    server.failures = [(503, {"message": "down"})] * 50
    with pytest.raises(TransientError, match=r"'fake' at http://127.*503.*, 2 times in a row"):
        list(open_judge(chat(server, retries=1), None).rate(pairs(1)))
    with serving() as gone:
        url = gone.url
    with pytest.raises(TransientError, match="cannot be reached"):
        list(open_judge(chat(server, retries=0).model_copy(update={"base_url": url}), None).rate(pairs(1)))


def test_a_judge_that_does_not_answer_in_time_is_a_transient_error(server: FakeJudge) -> None:
    server.keeps_waiting = lambda *asked: True
    with pytest.raises(TransientError, match="cannot be reached: Request timed out"):
        list(open_judge(chat(server, retries=0, timeout_seconds=0.3), None).rate(pairs(1)))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}),
        (404, {"message": "no such model"}),
        (400, {"message": "too long"}),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    ],
)
def test_a_permanent_refusal_is_an_error_that_does_not_show_the_key(
    server: FakeJudge, status: int, error: dict[str, str]
) -> None:
    server.failures = [(status, error)] * 50
    with pytest.raises(JudgeError, match=rf"'fake' at http://127.*{status}.*Look at judge\.model") as caught:
        list(open_judge(chat(server, retries=1, concurrency=1), None).rate(pairs(3)))
    assert KEY not in str(caught.value)


def test_malformed_replies_are_requested_again_and_then_counted(server: FakeJudge, store: ArtifactStore) -> None:
    """Question 1 never gets a readable reply, question 2 only at the second request."""
    seen: Counter[str] = Counter()

    def reply(question: str, first: str, second: str) -> str:
        seen[question + first] += 1
        if question == "Question 1?" or (question == "Question 2?" and seen[question + first] == 1):
            return "Both are fine."
        return rate(question, first, second)

    server.reply = reply
    spec = spec_of(store, chat(server, attempts=3))
    comparisons.run(store, spec, silent)
    rows = judged(store, spec)
    (bad,) = (row for row in rows if row["outcome"] == "malformed")
    assert bad["prompt"] == "Question 1?"
    assert bad["first_judgement"] is bad["first_policy_score"] is bad["second_judgement"] is None
    assert "the first line is 'Both are fine.', not two scores" in bad["reason"]
    assert bad["first_explanation"] == "Both are fine."
    requests = {row["prompt"]: row["requests"] for row in rows}
    assert requests == {f"Question {i}?": {1: 6, 2: 4}.get(i, 2) for i in range(PROMPTS)}


def test_both_orders_are_judged_and_recorded_from_the_side_of_the_policy(
    server: FakeJudge, store: ArtifactStore
) -> None:
    """A judge that favours the first answer turns narrow wins into ties and keeps clear ones."""
    bias = 1
    server.reply = lambda question, first, second: f"{min(10, score(first) + bias)} {score(second)}\nsaid"
    spec = spec_of(store, chat(server))
    comparisons.run(store, spec, silent)
    rows = judged(store, spec)
    assert [row["prompt"] for row in rows] == [f"Question {i}?" for i in range(PROMPTS)]
    asked = Counter(server.asked)
    for row in rows:
        ours, theirs = row["policy_response"], row["baseline_response"]
        assert ours.startswith("policy") and theirs.startswith("the base")
        assert asked[row["prompt"], ours, theirs] == asked[row["prompt"], theirs, ours] == 1
        assert (row["first_policy_score"], row["first_baseline_score"]) == (min(10, score(ours) + bias), score(theirs))
        assert (row["second_policy_score"], row["second_baseline_score"]) == (
            score(ours),
            min(10, score(theirs) + bias),
        )
        wins = [row["first_judgement"], row["second_judgement"]]
        assert row["outcome"] == (
            "win" if "win" in wins and "lose" not in wins else "lose" if "lose" in wins and "win" not in wins else "tie"
        )
        assert row["judge"] == f"fake at {server.url}"
    assert sum(asked.values()) == 2 * PROMPTS
    assert len({row["outcome"] for row in rows}) == 3, "a case of each outcome, or the test shows nothing"


def test_a_reward_as_judge_scores_each_answer_once_and_is_recorded_as_stand_in(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.rewards

    scored: list[tuple[str, str]] = []

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        scored.extend(zip(prompts, responses, strict=True))
        return [float(len(text)) for text in responses]

    monkeypatch.setattr(tests.rewards, "counted", counted, raising=False)
    spec = spec_of(store, stand_in(3.0, "tests.rewards:counted"))
    comparisons.run(store, spec, silent)
    assert len(scored) == len(set(scored)) == 2 * PROMPTS
    for row in judged(store, spec):
        gap = len(row["policy_response"]) - len(row["baseline_response"])
        verdict = "tie" if abs(gap) <= 3 else "win" if gap > 0 else "lose"
        assert (row["first_judgement"], row["second_judgement"], row["outcome"]) == (verdict, verdict, verdict)
        assert row["judge"] == "stand-in: reward function tests.rewards:counted"
        assert row["requests"] == 0


def test_several_policies_get_the_judgements_of_each_alone(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.rewards

    scored: Counter[tuple[str, str]] = Counter()

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        scored.update(zip(prompts, responses, strict=True))
        return [float(len(text)) for text in responses]

    monkeypatch.setattr(tests.rewards, "counted", counted, raising=False)
    monkeypatch.setattr(stand_in_judge, "_PAIRS", 4)
    first = spec_of(store, stand_in(3.0, "tests.rewards:counted"))
    second = first.model_copy(update={"policies": [[answers(store, "another", list(range(PROMPTS)))]]})
    both = first.model_copy(update={"policies": first.policies + second.policies})
    comparisons.run(store, both, silent)
    rows = judged(store, both)
    assert [row["policy_response"].split()[0] for row in rows] == ["policy"] * PROMPTS + ["another"] * PROMPTS
    assert rows == judged(store, first) + judged(store, second)
    assert set(scored.values()) == {1}, "the baseline's answers too"


def test_rewards_that_are_not_finite_are_malformed_and_not_ties(store: ArtifactStore) -> None:
    spec = spec_of(store, stand_in(function="tests.rewards:nothing"))
    comparisons.run(store, spec, silent)
    assert {(row["outcome"], row["first_judgement"]) for row in judged(store, spec)} == {("malformed", None)}


def test_sides_that_answer_different_prompts_are_refused(store: ArtifactStore) -> None:
    spec = spec_of(store, stand_in()).model_copy(
        update={"baseline": [answers(store, "the base", [0, 1, 2, 3, 4, 5, 9])]}
    )
    with pytest.raises(ConservationError, match="not the same"):
        comparisons.run(store, spec, silent)


def test_keys_depend_only_on_settings_that_change_a_judgement(server: FakeJudge, store: ArtifactStore) -> None:
    def keys(**changes: Any) -> list[str]:
        return [work.key for work in comparisons.works(store, spec_of(store, chat(server, **changes)))]

    same = {"concurrency": 1, "retries": 2, "timeout_seconds": 5.0}
    prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 2.0}
    assert keys() == keys(**same, **prices)
    assert not set(keys()) & set(keys(attempts=5))
    assert len(set(keys())) == 4


def test_a_killed_judging_repeats_no_request_that_was_committed(
    server: FakeJudge, store: ArtifactStore, tmp_path: Path
) -> None:
    """The process of the stage is killed while it waits for the second order of a pair, and started again."""
    spec = spec_of(store, chat(server, concurrency=2))
    file = tmp_path / "spec.json"
    file.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "optune_core.stages.worker", "comparisons", str(file), store.objects.url]
    half_judged = f"Question {2 * SHARD}?"
    answered = {f"Question {i}?" for i in range(2 * SHARD)}

    def keeps_waiting(question: str, first: str, second: str) -> bool:
        return question not in answered and not (question == half_judged and first.startswith("policy"))

    server.keeps_waiting = keeps_waiting
    manifests = Path(store.objects.url) / "artifacts" / "comparisons"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    until(lambda: len(list(manifests.glob("*/manifest.json"))) == 2 and len(server.asked) == 9)
    process.kill()
    process.wait()
    works = comparisons.works(store, spec)
    committed = [number for number, work in enumerate(works) if store.find(work) is not None]
    assert committed == [0, 1]
    before = list(server.asked)
    earlier = [store.find(works[number]) for number in committed]

    server.keeps_waiting = lambda *asked: False
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ)
    assert json.loads(done.stdout.splitlines()[-1]) == {"done": True}, done.stderr
    rows = judged(store, spec)
    again = server.asked[len(before) :]
    paid = {row["prompt"] for row in rows[: 2 * SHARD]}
    assert {question for question, _, _ in again} == {f"Question {i}?" for i in range(PROMPTS)} - paid
    assert [store.find(works[number]) for number in committed] == earlier
    assert len(again) == 2 * (PROMPTS - 2 * SHARD)
    assert len(before) == 9
    assert len(rows) == PROMPTS
    assert KEY not in done.stderr + done.stdout


def test_a_complete_judging_asks_nothing_when_started_again(server: FakeJudge, store: ArtifactStore) -> None:
    spec = spec_of(store, chat(server))
    comparisons.run(store, spec, silent)
    first = len(server.asked)
    comparisons.run(store, spec, silent)
    assert len(server.asked) == first == 2 * PROMPTS


def test_judgements_before_an_error_stay_committed(server: FakeJudge, store: ArtifactStore) -> None:
    spec = spec_of(store, chat(server, concurrency=1, retries=0))

    def reply(question: str, first: str, second: str) -> str:
        if question == "Question 3?":
            server.failures = [(400, {"message": "flagged"})]
        return rate(question, first, second)

    server.reply = reply
    with pytest.raises(JudgeError, match="flagged"):
        comparisons.run(store, spec, silent)
    found = [store.find(work) is not None for work in comparisons.works(store, spec)]
    assert found == [True, False, False, False]


def test_a_reward_model_from_the_store_judges_as_stand_in(tiny: Path, store: ArtifactStore) -> None:
    """The judge is a real classifier of the tiny size."""
    from optune_core.data.model_folder import Model
    from optune_core.stages import model
    from tests.tiny import build_model

    if not (tiny / "judge").exists():
        build_model(tiny / "judge", labels=1, seed=5)
    wanted = model.Spec(model=Model(model=str(tiny / "judge")), role="reward")
    model.run(store, wanted, silent)
    ((artifact),) = [store.find(work) for work in model.works(store, wanted)]
    assert artifact is not None
    reward = ClassifierReward(model="tiny/judge", batch_size=4, dtype="float32")
    spec = spec_of(store, RewardJudge(reward=ReadyReward.of(reward, artifact.ref), tie_margin=0.0))
    comparisons.run(store, spec, silent)
    rows = judged(store, spec)
    assert {row["outcome"] for row in rows} <= {"win", "lose"}
    for row in rows:
        assert row["first_policy_score"] == row["second_policy_score"]
        assert (row["outcome"] == "win") == (row["first_policy_score"] > row["first_baseline_score"])
    assert {row["judge"] for row in rows} == {"stand-in: reward classifier tiny/judge"}
    manifest = store.find(comparisons.works(store, spec)[0])
    assert manifest is not None and manifest.parents["judge"] == artifact.ref
