"""The recipes of docs/extending.md, run as a user's own package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from optune_core.config import OptuneConfig, load_config
from optune_core.data.schemas import REPLAY, RESPONSES, read_table
from optune_core.reports.page import report
from optune_core.storage import ArtifactStore, Ledger, Manifest, open_objects

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILE = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Run:
    """A run of the page's configuration with the tiny model."""

    folder: Path
    """The user's, with the package `my_parts`."""
    config: OptuneConfig
    store: ArtifactStore

    def records(self) -> list[dict[str, Any]]:
        return Ledger(self.store.objects, "my-run").iterations()

    def manifest(self, record: dict[str, Any], name: str) -> Manifest:
        return self.store.manifest(record["artifacts"][name])

    def replay(self, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Rows by prompt."""
        folder = self.store.fetch(self.manifest(record, "replay").ref)
        return {row["prompt_id"]: row for row in read_table(folder / "replay.parquet", REPLAY).to_pylist()}

    def responses(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        shards = [self.store.fetch(ref) for ref in record["artifacts"]["responses"]]
        return [row for shard in shards for row in read_table(shard / "responses.parquet", RESPONSES).to_pylist()]


@pytest.fixture(scope="module")
def run(tiny: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two iterations of the page's configuration, in a folder that holds the page's files."""
    from flows.run import optune

    folder = tmp_path_factory.mktemp("user")
    for found in FILE.finditer(PAGE.read_text()):
        path = folder / found["name"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(found["text"])
    overrides = [f"policy.model={tiny / 'policy'}", f"prompts.source.path={tiny / 'prompts.jsonl'}"]
    store = str(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # child processes find the package there
        config = load_config("my-run.yaml", overrides)
        optune("my-run.yaml", overrides, store)
        yield Run(folder, config, ArtifactStore(open_objects(store)))


def test_selector_of_the_page_takes_the_largest_margins(run: Run) -> None:
    first, second = run.records()
    before, after = run.replay(first), run.replay(second)
    margins = {i: row["chosen_reward"] - row["rejected_reward"] for i, row in before.items() if row["chosen_reward"]}
    regenerated = {prompt_id for prompt_id, row in after.items() if row["status"] != "reused"}
    unpaired = before.keys() - margins.keys()
    assert len(regenerated) == 6
    assert unpaired <= regenerated
    assert min(margins[i] for i in regenerated - unpaired) >= max(margins[i] for i in before.keys() - regenerated)


def test_loss_of_the_page_equals_its_formula(run: Run) -> None:
    import torch

    from optune_core.losses.loss import Batch

    nothing = torch.zeros(2)
    batch = Batch(
        policy_chosen_logps=torch.tensor([-10.0, -3.0]),
        policy_rejected_logps=torch.tensor([-12.0, -5.0]),
        reference_chosen_logps=torch.tensor([-11.0, -3.0]),
        reference_rejected_logps=torch.tensor([-11.0, -9.0]),
        chosen_rewards=nothing,
        rejected_rewards=nothing,
        online=torch.zeros(2, dtype=torch.bool),
        online_share=0.0,
    )
    # h = (−10 + 11) − (−12 + 11) = 2 and (−3 + 3) − (−5 + 9) = −4; 1/(2τ) = 2
    assert run.config.training.loss.losses(batch).losses.tolist() == [0.0, 36.0]


def test_training_minimises_the_loss_of_the_page(run: Run) -> None:
    for record in run.records():
        metrics = run.manifest(record, "policy").metrics
        # The policy starts as its own reference, so h = 0 and the loss is (1/(2τ))² = 4.
        assert metrics["first"]["loss"] == pytest.approx(4.0, abs=1e-4)
        assert metrics["first"]["log_ratio_margins"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["last"]["loss"] < 4.0


def test_reward_of_the_page_scores_the_responses(run: Run) -> None:
    rows = run.replay(run.records()[-1]).values()
    paired = [row for row in rows if row["status"] != "unpaired"]
    assert len(paired) > 6
    for row in paired:
        for side in ("chosen", "rejected"):
            assert row[f"{side}_reward"] == pytest.approx(-abs(len(row[side]) - 30) / 30)


def test_engine_of_the_page_samples_by_the_seed_of_each_request(run: Run) -> None:
    first, second = run.records()
    assert len(run.responses(first)) == 24
    assert len(run.responses(second)) == 12
    assert all(1 <= len(row["response_token_ids"]) <= 12 for row in run.responses(first))

    from optune_core.generation import Request, sampling_seed

    row = run.responses(second)[5]
    engine = run.config.generation.engine
    policy = run.store.fetch(second["artifacts"]["started_from"]) / "model"
    seed = sampling_seed(run.config.seed, 1, row["prompt_id"], row["sample"])
    sampler = engine.start(run.config.generation.sampling, policy, max_tokens=76)
    (again,) = sampler.generate([Request(shard=0, index=0, prompt_token_ids=row["prompt_token_ids"], seed=seed)])
    assert again.token_ids == row["response_token_ids"]
    assert again.text == row["response"]


def test_sources_of_the_page_are_part_of_the_keys(run: Run) -> None:
    first = run.records()[0]
    shard = run.store.manifest(first["artifacts"]["responses"][0])
    scored = run.store.manifest(first["artifacts"]["scores"][0])
    second = run.manifest(run.records()[1], "selection")
    found = {
        "engine": shard.params["engine"]["source"],
        "loss": run.manifest(first, "policy").params["loss"]["source"],
        "reward": scored.params["source"],
        "selector": second.params["source"],
    }
    assert found == {name: sha256((run.folder / "my_parts" / f"{name}.py").read_bytes()).hexdigest() for name in found}


def test_page_of_the_run_shows_the_labels_of_the_parts(run: Run) -> None:
    page = unescape(report(run.store, ["my-run"]))
    for label in (
        "largest margin, ρ = 0.5",
        "IPO (Azar et al. 2023), τ = 0.25, reference previous",
        "near 30 characters",
        "my_parts.engine:OneByOne",
    ):
        assert label in page


def test_kind_of_evaluation_of_the_page_counts_distinct_words(run: Run, tiny: Path) -> None:
    from flows.evaluate import evaluate

    overrides = [f"prompts.source.path={tiny / 'prompts.jsonl'}"]
    source = sha256((run.folder / "my_parts" / "evaluation.py").read_bytes()).hexdigest()
    records = evaluate("my-evaluation.yaml", "my-run", every=True, overrides=overrides, store=run.store.objects.url)
    assert [record["iteration"] for record in records] == [0, 1, 2]
    for record in records:
        shards = [run.store.fetch(ref) for ref in record["artifacts"]["responses"]]
        rows = [row for shard in shards for row in read_table(shard / "responses.parquet", RESPONSES).to_pylist()]
        words = [word for row in rows for word in row["response"].split()]
        assert len(rows) == 4
        assert record["metrics"] == {"share": len(set(words)) / len(words)}
        assert record["config"]["source"] == source
        assert f"<td>{record['metrics']['share']:.3f}</td>" in report(run.store, ["my-run"])
