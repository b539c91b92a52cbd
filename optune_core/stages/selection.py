"""Stage `selection`: the prompts that iteration t regenerates, with their token ids, in the order of the replay set."""

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
    """Spec of the stage."""

    selector: Annotated[Selector, SELECTORS]
    seed: int
    iteration: int
    previous: Ref
    """D_{t-1}; at t = 0 the prompt set."""
    all_at_first: bool = True
    """True: iteration 0 selects every prompt, whatever the selector is. False: it uses the selector, as for the online
    samples of a loss."""


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage. Runs with different selectors share that of iteration 0."""
    params = {"iteration": spec.iteration, "seed": spec.seed, **_selector(spec).identity()}
    return [Work("selection", VERSION, params, {"previous": spec.previous})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Rank the prompts, and commit the selected ones with their token ids.

    They keep the order of the replay set, not that of the ranks. So responses have this order too, and the merge reads
    both in one pass.
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
    """Yield the row groups of a replay set, or of the prompt set as a replay set without pairs.

    Args:
        store: store of the artifacts.
        ref: replay set or prompt set.
        schema: columns of REPLAY to read.
    """
    folder = store.fetch(ref)
    if ref.stage == "prompts":
        # Ids are read in any case, since a table without columns has no number of rows.
        stored = only(PROMPTS, *[name for name in PROMPTS.names if name in ("prompt_id", *schema.names)])
        for prompts in read_groups([folder / TRAIN_PROMPTS_FILE], stored):
            yield empty_replay(prompts, schema)
    else:
        yield from read_groups([folder / REPLAY_FILE], schema)


def _selector(spec: Spec) -> Selector:
    first = spec.all_at_first and spec.iteration == 0 and spec.selector.regenerates
    return All() if first else spec.selector


STAGE = Stage("selection", Spec, works, run, in_process=True)
