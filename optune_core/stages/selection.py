"""Stage `selection`: the prompts that iteration t regenerates, lowest rank first, ready for the engine."""

from __future__ import annotations

import time

import pyarrow as pa
from pydantic import BaseModel

from optune_core.config.schema import Selection
from optune_core.progress import Progress
from optune_core.replay import empty_replay
from optune_core.schemas import PROMPTS, REPLAY, read_table, write_table
from optune_core.selection import select
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 1
FILE = "selection.parquet"


class Spec(BaseModel):
    selection: Selection
    seed: int
    iteration: int
    previous: dict[str, str]
    """Reference to D_{t-1}, or to the prompt set where there is none yet."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work. Iteration 0 takes every prompt whatever the configuration says, so all runs share it."""
    params = {"iteration": spec.iteration, "seed": spec.seed, **_selection(spec).model_dump(mode="json")}
    return [Work("selection", VERSION, params, {"previous": Ref.from_json(spec.previous)})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Rank and cut; the artifact holds the selected prompts with their token ids."""
    (work,) = works(store, spec)
    started = time.monotonic()
    previous = load_replay(store, Ref.from_json(spec.previous))
    config = _selection(spec)
    selected = select(previous, selector=config.selector, rho=config.rho, seed=spec.seed, iteration=spec.iteration)
    row_of = {prompt_id: row for row, prompt_id in enumerate(previous["prompt_id"].to_pylist())}
    rows = pa.array([row_of[prompt_id] for prompt_id in selected.to_pylist()], pa.int64())
    with store.scratch() as scratch:
        write_table(previous.take(rows).select(PROMPTS.names), PROMPTS, scratch / FILE)
        store.commit(
            work,
            scratch,
            metrics={"prompts": previous.num_rows, "selected": len(rows)},
            timing={"seconds": time.monotonic() - started},
        )


def load_replay(store: ArtifactStore, ref: Ref) -> pa.Table:
    """A replay set, or the prompt set as a replay set without pairs."""
    folder = store.fetch(ref)
    if ref.stage == "prompts":
        return empty_replay(read_table(folder / "train.parquet", PROMPTS))
    return read_table(folder / "replay.parquet", REPLAY)


def _selection(spec: Spec) -> Selection:
    if spec.iteration == 0 and spec.selection.selector != "none":
        return Selection(selector="all")
    return spec.selection
