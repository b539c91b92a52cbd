"""Tables, seconds saved by sharing, and figures of a sweep, from records made by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from optune_core.data.schemas import SCORES, write_table
from optune_core.storage import ArtifactStore, Ledger, Ref, Work, open_objects
from optune_core.storage.canonical import canonical_json
from optune_core.storage.lease import hold
from optune_core.storage.sweeps import SweepRecord
from optune_core.sweep.figures import draw_figures
from optune_core.sweep.grid import Cell, load_sweep
from optune_core.sweep.results import (
    WIN_SCORE,
    CellResult,
    Estimate,
    OverSeeds,
    Point,
    known_metrics,
    over_seeds,
    read_cells,
    settings,
)
from optune_core.sweep.sharing import Sharing, sharing
from optune_core.sweep.tables import notes, sharing_text, sweep_tables
from tests.unit.test_sweep_grid import write

ITERATIONS = 2


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")))


def commit(store: ArtifactStore, stage: str, name: str, timing: dict[str, float], *parents: Ref) -> Ref:
    work = Work(stage, 1, {"name": name}, {str(number): ref for number, ref in enumerate(parents)})
    with store.scratch() as folder:
        (folder / "file").write_text(name)
        return store.commit(work, folder, timing=timing).ref


def commit_scores(store: ArtifactStore, rewards: list[float]) -> Ref:
    import pyarrow as pa

    table = pa.table(
        {
            "prompt_id": [f"p{number}" for number in range(len(rewards))],
            "sample": pa.array([0] * len(rewards), pa.int32()),
            "reward": rewards,
            "outcome": ["ok"] * len(rewards),
        },
        schema=SCORES,
    )
    with store.scratch() as folder:
        write_table(table, SCORES, folder / "scores.parquet")
        return store.commit(Work("scores", 1, {"rewards": rewards}), folder, timing={"seconds": 0.0}).ref


def record_run(store: ArtifactStore, cell: Cell, *, train: float, generate: float, gain: float) -> None:
    """A finished run of two iterations, the first of which all cells share."""
    ledger = Ledger(store.objects, cell.run)
    prompts = commit(store, "prompts", "prompts", {"seconds": 1.0})
    ledger.open(cell.config, {"prompts": prompts})
    for t in range(ITERATIONS):
        own = cell.run if t else "shared"
        responses = commit(
            store, "responses", own, {"seconds": generate, "engine_start_seconds": 2.0, "ended_at": 9e9}, prompts
        )
        policy = commit(store, "policy", own, {"seconds": train}, responses)
        record: dict[str, Any] = {
            "iteration": t,
            "artifacts": {"policy": policy, "responses": [responses]},
            "metrics": {"selection": {"prompts": 10, "selected": 10 if t == 0 else 4}},
            "timing": {"start engine": 2.0, "generate": generate, "train": train},
        }
        ledger.commit_iteration(t, record)
    for t in range(ITERATIONS + 1):
        scores = commit_scores(store, [prompt + gain * t for prompt in (0.0, 1.0, 3.0)])
        ledger.commit_held_out(t, {"iteration": t, "proxy": [scores], "gold": [scores]})
    with hold(store.objects, cell.run, cell.config.model_dump(mode="json")):
        pass


def record_win_score(store: ArtifactStore, run: str, iteration: int, score: float) -> None:
    metrics = {"win_score": score, "low": score - 5, "high": score + 5, "wins": 1, "ties": 0, "losses": 0, "total": 1}
    record = {
        "kind": "win_score",
        "name": "lima",
        "iteration": iteration,
        "baseline": "π₀",
        "judge": "a reward model (stand-in)",
        "metrics": metrics,
    }
    store.objects.create(f"runs/{run}/evaluations/lima/{iteration:04d}.json", canonical_json(record))


@pytest.fixture
def two_seeds(store: ArtifactStore, tmp_path: Path) -> list[Cell]:
    """ρ = 0.4 and ρ = 1 with two seeds; of ρ = 1 the second seed was never started."""
    made = load_sweep(write(tmp_path, grid={"selection.rho": [0.4, 1.0], "seed": [0, 1]})).cells
    for cell in made[:3]:
        rho, seed = cell.config.selection.rho, cell.config.seed
        record_run(store, cell, train=10.0, generate=20.0 * rho, gain=rho + seed)
    return made


def test_a_cell_result_is_read_from_the_records_of_its_run(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    part, _, full, absent = read_cells(store, two_seeds)
    assert [point.seconds for point in part.points] == [0.0, 20.0, 40.0]
    assert part.seconds == {"start engine": 4.0, "generate": 16.0, "train": 20.0}
    assert part.generated == 14
    assert [point.metrics["gold"].value for point in part.points] == pytest.approx([0.0, 0.4, 0.8])
    assert part.speedup == pytest.approx((4 + 40 + 20) / (4 + 16 + 20))
    assert full.speedup is None, "it is what the others are compared with"
    assert (absent.state, absent.iterations, absent.is_complete) == ("waiting", 0, False)
    assert read_cells(store, two_seeds)[1].speedup is None, "the cell to compare with has not been computed"


def test_results_are_averaged_over_the_seeds_that_are_complete(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    part, full = settings(read_cells(store, two_seeds))
    assert (len(part.complete), len(full.complete)) == (2, 1)
    gold = part.at(ITERATIONS, "gold")
    assert gold is not None
    assert (gold.mean, gold.deviation, gold.seeds) == (pytest.approx(1.8), pytest.approx(2**0.5), 2)
    assert over_seeds([4.0]) == OverSeeds(4.0, None, 1)
    assert over_seeds([]) is None


def test_tables_show_the_number_of_seeds_and_the_missing_cells(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    reached, took, of_seeds = sweep_tables("swept", read_cells(store, two_seeds))
    assert [row[:2] for row in reached.rows][-1] == ["rho_1-seed_1", "0/2 waiting"]
    assert reached.rows[0] == ["rho_0.4-seed_0", "2/2", *["+0.800 [+0.800, +0.800]"] * 2, "–"]
    assert took.rows[0][-3:] == ["40", "1.60×", "14"]
    assert [row[:2] for row in of_seeds.rows] == [
        ["optune, ρ = 0.4; wDPO, β₂ = 1", "2 of 2"],
        ["all, ρ = 1; wDPO, β₂ = 1", "1 of 2"],
    ]
    assert of_seeds.rows[0][3] == "+1.800 ± 1.414"
    assert of_seeds.rows[1][3] == "+2.000"
    for table in (reached, took, of_seeds):
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_win_scores_replace_rewards_where_there_are_some(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    assert known_metrics(read_cells(store, two_seeds)) == ["proxy", "gold"]
    record_win_score(store, two_seeds[0].run, 1, 48.0)
    record_win_score(store, two_seeds[0].run, 2, 55.0)
    results = read_cells(store, two_seeds)
    assert known_metrics(results) == [WIN_SCORE]
    assert results[0].last(WIN_SCORE) == Estimate(55.0, 50.0, 60.0)
    assert sweep_tables("swept", results)[0].rows[0][-1] == "55.0 [50.0, 60.0]"
    assert notes(results) == ["Win score against π₀, judged by a reward model (stand-in)."]


def test_a_cell_is_incomplete_before_its_last_evaluation(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    """The run is killed between its last iteration and its last evaluation."""
    from optune_core.storage.lease import take

    take(store.objects, two_seeds[0].run, {}).release("interrupted")
    results = read_cells(store, two_seeds)
    assert results[0].iterations == ITERATIONS
    assert not results[0].is_complete
    assert sweep_tables("swept", results)[0].rows[0][1] == "2/2 interrupted"


def test_failed_cell_is_shown_with_its_error(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    from optune_core.errors import DataError

    failed = two_seeds[3]
    with pytest.raises(DataError), hold(store.objects, failed.run, {}):
        raise DataError("no prompt has a pair")
    results = read_cells(store, two_seeds)
    assert sweep_tables("swept", results)[0].rows[3][1] == "0/2 failed"
    assert notes(results) == [f"{failed.run}: failed: DataError: no prompt has a pair"]


def test_the_seconds_of_shared_artifacts_are_counted_once(store: ArtifactStore, two_seeds: list[Cell]) -> None:
    """Three runs: prompts (1 s) and iteration 0 (20 s with the engine's start) are common."""
    runs = [cell.run for cell in two_seeds]
    first = 1.0 + (8.0 + 2.0) + 10.0
    second = [8.0 + 2.0 + 10.0, 8.0 + 2.0 + 10.0, 20.0 + 2.0 + 10.0]
    shared = sharing(store, runs)
    assert shared.made == pytest.approx(first + sum(second))
    assert shared.unshared == pytest.approx(3 * first + sum(second))
    assert sharing(store, runs[:1]).saved == 0
    text = sharing_text(shared)
    assert f"{shared.made:,.0f} s" in text and f"{shared.saved:,.0f} s saved" in text
    assert sharing_text(Sharing(0.0, 0.0, 0, 0)) == "Nothing is committed yet."


def test_adding_cells_to_a_sweep_keeps_the_earlier_ones(store: ArtifactStore) -> None:
    record = SweepRecord(store.objects, "swept")
    record.add("swept-seed_0", {"seed": 0})
    record.add("swept-seed_0", {"seed": 0})
    record.add("swept-seed_1", {"seed": 1})
    assert record.cells() == [
        {"run": "swept-seed_0", "values": {"seed": 0}},
        {"run": "swept-seed_1", "values": {"seed": 1}},
    ]


def made_up(folder: Path, win: bool, seeds: int, betas: list[float]) -> list[CellResult]:
    """Return plausible results of a grid like the paper's."""
    grid = {
        "selection.rho": [0.3, 0.5, 0.7, 1.0],
        "selection.type": ["optune", "random"],
        "training.loss.beta2": betas,
        "seed": list(range(seeds)),
    }
    exclude = [{"selection.rho": 1.0, "selection.type": "random"}]
    cells = load_sweep(write(folder, grid=grid, exclude=exclude), ["iterations=3"]).cells
    results = []
    for cell in cells:
        rho, beta2 = cell.config.selection.rho, cell.config.training.loss.beta2
        rate = (8 if beta2 else 6) * (1.0 if cell.config.selection.type == "optune" else 0.5 + rho / 2)
        points = []
        for t in range(4):
            value = 40 + rate * t**0.7 + (cell.config.seed - 1) * 0.8 * (t > 0)
            metrics = (
                {WIN_SCORE: Estimate(value, value - 3, value + 3)}
                if win
                else {
                    name: Estimate((value - 40) / scale, (value - 43) / scale, (value - 37) / scale)
                    for name, scale in (("proxy", 5), ("gold", 100))
                }
            )
            points.append(Point(t, 900.0 * t * (0.3 + 0.7 * (rho if t > 1 else 1)), metrics))
        compared = "against zephyr-7b-beta, judged by a reward model (stand-in)" if win else ""
        results.append(CellResult(cell.run, cell.config, "", "finished", "", points, {"train": 1.0}, 1, compared))
    return results


@pytest.mark.parametrize(
    ("win", "seeds", "betas", "files"),
    [
        (True, 3, [1.0, 0.0], ["win-score-by-iteration", "win-score-by-time", "win-score-dpo-and-wdpo"]),
        (True, 1, [1.0], ["win-score-by-iteration", "win-score-by-time"]),
        (
            False,
            2,
            [4.0, 1.0, 0.0],
            [
                f"{reward}-{name}"
                for reward in ("proxy", "gold")
                for name in ("by-iteration", "by-time", "dpo-and-wdpo", "by-beta2")
            ],
        ),
    ],
)
def test_figures_are_drawn_for_each_metric_and_are_not_blank(
    tmp_path: Path, win: bool, seeds: int, betas: list[float], files: list[str]
) -> None:
    results = made_up(tmp_path, win, seeds, betas)
    drawn = draw_figures("swept", results, tmp_path / "figures")
    assert [file.name for file in drawn] == [f"{name}.svg" for name in files]
    shown = settings(results)
    losses, selections = {setting.first.loss for setting in shown}, {setting.first.selection for setting in shown}
    assert (len(losses), len(selections)) == (len(betas), 7)
    for file in drawn:
        by_beta2 = file.stem.endswith("by-beta2")
        elements = list(ElementTree.parse(file).iter())
        lines = [element for element in elements if element.tag.endswith("polyline")]
        assert len(lines) == (len(selections) if by_beta2 else len(shown))
        texts = [element.text or "" for element in elements if element.tag.endswith("text")]
        assert (selections if by_beta2 else selections | losses) <= set(texts)
        text = " ".join(texts)
        assert ("win score against zephyr-7b-beta, judged by a reward model (stand-in)" in text) == win
        assert ("bars: 95 % interval over prompts; one seed" in text) == (seeds == 1)
        assert not re.search("NaN|inf", file.read_text())


def test_a_figure_shows_the_means_of_its_settings(tmp_path: Path) -> None:
    results = made_up(tmp_path, True, 3, [1.0, 0.0])
    file = draw_figures("swept", results, tmp_path / "figures")[0]
    tips = [element.text for element in ElementTree.parse(file).iter() if element.tag.endswith("title")]
    wanted = []
    for setting in settings(results):
        for t in range(4):
            found = setting.at(t, WIN_SCORE)
            assert found is not None
            wanted.append(f"{setting.first.selection}: {found.mean:.4g}")
    assert sorted(map(str, tips)) == sorted(wanted)


def test_no_figures_without_results(store: ArtifactStore, tmp_path: Path) -> None:
    cells = load_sweep(write(tmp_path)).cells
    assert draw_figures("swept", read_cells(store, cells), tmp_path / "figures") == []


def test_the_page_of_a_sweep_embeds_its_tables_and_figures(tmp_path: Path) -> None:
    from optune_core.sweep.page import sweep_markdown

    results = made_up(tmp_path, True, 2, [1.0, 0.0])
    drawn = draw_figures("swept", results, tmp_path / "figures")
    page = sweep_markdown("swept", results, Sharing(10.0, 25.0, 4, 2), drawn)
    assert len(re.findall(r"!\[[\w-]+\]\(data:image/svg\+xml;base64,", page)) == 3
    assert "15 s saved" in page
    assert page.count("| optune, ρ = 0.3; ") == 2
