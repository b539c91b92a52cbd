"""Stage `selection`: the prompts that iteration t regenerates, ready for the engine, in the replay set's order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from optune_core.data.row_groups import read_groups, write_groups
from optune_core.data.schemas import PROMPTS, REPLAY, only
from optune_core.data.shards import REPLAY_FILE, SELECTION_FILE, TRAIN_PROMPTS_FILE
from optune_core.process.progress import Progress
from optune_core.replay import empty_replay
from optune_core.selection import Selector, select_rows
from optune_core.selection.everything import All
from optune_core.selection.registry import SELECTORS
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Ref, Work

VERSION = 2


class Spec(BaseModel):
    selector: Annotated[Selector, SELECTORS]
    seed: int
    iteration: int
    previous: Ref
    """D_{t-1}, or to the prompt set where there is none yet."""
    all_at_first: bool = True
    """Iteration 0 takes every prompt, whatever the selector. False where the prompts are not regenerated, as for the
    online samples of a loss."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work. All runs share that of iteration 0 (see `Spec.all_at_first`)."""
    params = {"iteration": spec.iteration, "seed": spec.seed, **_selector(spec).identity()}
    return [Work("selection", VERSION, params, {"previous": spec.previous})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Rank and cut; the artifact holds the selected prompts with their token ids.

    They stand in the replay set's order, not in the rank's: so do their responses then, and the merge needs no search.
    """
    (work,) = works(store, spec)
    started = time.monotonic()
    previous = spec.previous
    selector = _selector(spec)
    ranked = pa.concat_tables(read_replay(store, previous, only(REPLAY, "prompt_id", *selector.columns)))
    rows = select_rows(ranked, selector, seed=spec.seed, iteration=spec.iteration)
    selected = np.zeros(ranked.num_rows, bool)
    selected[rows] = True

    def cut() -> Iterator[pa.Table]:
        first = 0
        for group in read_replay(store, previous, PROMPTS):
            yield group.filter(pa.array(selected[first : first + group.num_rows]))
            first += group.num_rows

    with store.scratch() as scratch:
        write_groups(cut(), PROMPTS, scratch / SELECTION_FILE)
        store.commit(
            work,
            scratch,
            metrics={"prompts": ranked.num_rows, "selected": len(rows)},
            timing={"seconds": time.monotonic() - started},
        )


def read_replay(store: ArtifactStore, ref: Ref, schema: pa.Schema) -> Iterator[pa.Table]:
    """A replay set, or the prompt set as a replay set without pairs.

    Args:
        schema: the columns of REPLAY to read.
    """
    folder = store.fetch(ref)
    if ref.stage == "prompts":
        # The ids always: a table without columns has no rows to count.
        stored = only(PROMPTS, *[name for name in PROMPTS.names if name in ("prompt_id", *schema.names)])
        for prompts in read_groups([folder / TRAIN_PROMPTS_FILE], stored):
            yield empty_replay(prompts, schema)
    else:
        yield from read_groups([folder / REPLAY_FILE], schema)


def _selector(spec: Spec) -> Selector:
    first = spec.all_at_first and spec.iteration == 0 and spec.selector.regenerates
    return All() if first else spec.selector


STAGE = Stage("selection", Spec, works, run, in_process=True)
