"""The reference pass: log π_ref(y|x) of every row, computed once, in shards that are committed one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from torch import Tensor

from optune_core.data.schemas import REFERENCE, read_table, write_table
from optune_core.errors import ConservationError
from optune_core.process import preemption
from optune_core.process.failpoints import reach
from optune_core.process.progress import Progress
from optune_core.storage import ArtifactStore, Work
from optune_core.training.batches import Pack, Step
from optune_core.training.layout import TokenPairs
from optune_core.training.logps import compute_inside, row_logps
from optune_core.training.spec import Spec
from optune_core.training.weights import load_master, weights_on_every_process

VERSION = 5
SHARD_PAIRS = 512
FILE = "reference.parquet"
"""File name of a shard, and of the table of all pairs in the artifact of a policy that was trained against π_0."""

Logps = dict[int, tuple[float, float]]
"""Row number → log π_ref(y|x) of (chosen, rejected)."""


class ReferencePass:
    """Computation of the reference log-probabilities of all rows.

    If the reference is π_0, pairs that were in D_{t-1} already are not computed again: π_t's artifact holds their
    values. With `training.reference_logps: engine`, the values of fresh pairs are those of the engine.

    Args:
        store: store of the artifacts.
        spec: spec of the training.
        replay: rows that are trained on, with columns of REPLAY.
        pairs: token ids of the same rows.
        kernel: name of the attention kernel of the models.
        state: this process among those that train together.
    """

    def __init__(
        self, store: ArtifactStore, spec: Spec, replay: pa.Table, pairs: TokenPairs, kernel: str, state: PartialState
    ) -> None:
        self._store, self._spec, self._replay, self._pairs = store, spec, replay, pairs
        self._kernel, self._state = kernel, state
        self._prompt_ids: list[str] = replay["prompt_id"].to_pylist()

    def work(self, shard: int) -> Work:
        """Return the work of a shard. Its key has all that determines the bits of the result, packing included."""
        spec = self._spec
        params = {
            "precision": spec.training.precision,
            "min_reward_gap": spec.training.min_reward_gap,
            "reference_logps": spec.training.reference_logps,
            "batch_size": spec.training.batch_size,
            "tokens_at_once": spec.tokens_at_once,
            "kernel": self._kernel,
            "processes": self._state.num_processes,
            "seed": spec.seed,
            "iteration": spec.iteration,
            "shard_pairs": SHARD_PAIRS,
            "shard": shard,
        }
        return Work("reference", VERSION, params, spec.parents)

    def __call__(self, policy: Any, steps: Sequence[Step], progress: Progress) -> Tensor:
        """Compute this process's share of the shards, wait for the other processes, and return the values of all rows.

        Args:
            policy: π_t after `logps.compute_inside`, on the device of this process.
            steps: optimizer steps of the first epoch, which contain every row once.
            progress: called with the number of rows that are done.

        Returns:
            log π_ref(y|x), float32, (2, N): chosen and rejected.

        Raises:
            ConservationError: rows are missing, or are there twice.
            Preempted: the process was asked to end; complete shards are committed.
        """
        store, state = self._store, self._state
        known = self._carried() | self._from_engine()
        shards = shards_of(steps, self._spec.training.batch_size, known)
        mine = range(state.process_index, len(shards), state.num_processes)
        missing = [shard for shard in mine if store.find(self.work(shard)) is None]
        reference: Any = self._load(policy) if missing else None
        total = _rows(shards[shard] for shard in mine)
        done = total - _rows(shards[shard] for shard in missing)
        precision = getattr(torch, self._spec.training.precision)
        for shard in missing:
            logps: Logps = {}
            for pack in shards[shard]:
                logps |= reference_logps(reference, state.device, self._pairs, pack, precision)
                progress("reference", done + len(logps), total)
            done += len(logps)
            with store.scratch() as scratch:
                write_table(shard_table(self._prompt_ids, logps), REFERENCE, scratch / FILE)
                store.commit(self.work(shard), scratch, metrics={"pairs": len(logps)})
            reach("reference.shard")
            if preemption.requested():
                preemption.leave()
        state.wait_for_everyone()
        found = [store.find(self.work(shard)) for shard in range(len(shards))]
        tables = [read_table(store.fetch(each.ref) / FILE, REFERENCE) for each in found if each is not None]
        logps_of_rows = assemble([*tables, shard_table(self._prompt_ids, known)], self._prompt_ids)
        return torch.tensor(logps_of_rows).T.contiguous()

    def _carried(self) -> Logps:
        """Return the values of pairs that are older than this iteration, from the artifact of π_t."""
        spec = self._spec
        if spec.training.reference != "initial" or spec.iteration == 0:
            return {}
        table = read_table(self._store.fetch(spec.policy) / FILE, REFERENCE)
        before = dict(zip(table["prompt_id"].to_pylist(), _columns(table), strict=True))
        ages = self._replay["generated_at"].to_pylist()
        return {
            row: before[prompt_id]
            for row, (prompt_id, made) in enumerate(zip(self._prompt_ids, ages, strict=True))
            if made < spec.iteration and prompt_id in before
        }

    def _from_engine(self) -> Logps:
        """Return the engine's values of pairs that were sampled from the reference in this iteration, if wanted."""
        spec = self._spec
        if spec.training.reference_logps == "computed" or not self._is_policy:
            return {}
        names = ("generated_at", "sampled_from", "chosen_policy_logps", "rejected_policy_logps")
        rows = zip(*(self._replay[name].to_pylist() for name in names), strict=True)
        return {
            row: (chosen, rejected)
            for row, (made, sampled_from, chosen, rejected) in enumerate(rows)
            if made == sampled_from == spec.iteration and chosen is not None and rejected is not None
        }

    @property
    def _is_policy(self) -> bool:
        """Return whether the reference is π_t."""
        return self._spec.training.reference == "previous" or self._spec.initial == self._spec.policy

    def _load(self, policy: Any) -> Any:
        spec = self._spec
        if self._is_policy:
            return policy.eval()
        with weights_on_every_process():
            model = load_master(self._store.fetch(spec.initial))
        model = model.to(self._state.device).eval()
        compute_inside(model, self._kernel, cast_weights=not spec.training.gradient_checkpointing)
        return model


@torch.no_grad()
def reference_logps(
    model: Callable[..., Tensor], device: torch.device, pairs: TokenPairs, pack: Pack, precision: torch.dtype
) -> Logps:
    """Return log π_ref(y|x) of the rows of a pack in nats, computed as training computes it.

    Args:
        model: the reference after `logps.compute_inside`, with float32 weights, on `device`.
        device: device to compute on.
        pairs: token ids of all rows.
        pack: numbers of the rows that share the forward pass.
        precision: autocast type of the forward pass; float32: no autocast.
    """
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        chosen, rejected = row_logps(model, pairs.row(pack.rows).to(device))
    return dict(zip(pack.rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))


def shards_of(steps: Sequence[Step], batch_size: int, known: Container[int] = ()) -> list[list[Pack]]:
    """Return the packs of an epoch, without known rows, in shards that are complete steps of about SHARD_PAIRS rows."""
    count = max(1, SHARD_PAIRS // batch_size)
    shards = []
    for first in range(0, len(steps), count):
        packs = [pack for step in steps[first : first + count] for process in step for pack in process if pack.counted]
        missing = [Pack(tuple(row for row in pack.rows if row not in known)) for pack in packs]
        shards.append([pack for pack in missing if pack.rows])
    return shards


def shard_table(prompt_ids: Sequence[str], logps: Logps) -> pa.Table:
    """Return the values as a table (schema REFERENCE), in the order of `logps`.

    Args:
        prompt_ids: prompt ids of all rows, by row number.
        logps: values of some rows.
    """
    return pa.table(
        [
            [prompt_ids[row] for row in logps],
            [chosen for chosen, _ in logps.values()],
            [rejected for _, rejected in logps.values()],
        ],
        schema=REFERENCE,
    )


def assemble(shards: Sequence[pa.Table], prompt_ids: Sequence[str]) -> list[tuple[float, float]]:
    """Return log π_ref(y|x) of (chosen, rejected) of every row, in the order of `prompt_ids`.

    Raises:
        ConservationError: a prompt is in no shard, in two shards, or not in the data set.
    """
    table = pa.concat_tables(shards)
    ids = table["prompt_id"].to_pylist()
    found, expected = Counter(ids), Counter(prompt_ids)
    if wrong := sorted((found - expected) + (expected - found)):
        raise ConservationError(
            f"the reference pass has {len(ids)} pairs and the data set {len(prompt_ids)}, and they do not match one to "
            f"one: prompt {wrong[0]!r} is {found[wrong[0]]} times in the first and {expected[wrong[0]]} in the second"
        )
    logps = dict(zip(ids, _columns(table), strict=True))
    return [logps[prompt_id] for prompt_id in prompt_ids]


def _columns(table: pa.Table) -> list[tuple[float, float]]:
    columns = [table[name].to_pylist() for name in ("reference_chosen_logps", "reference_rejected_logps")]
    return list(zip(*columns, strict=True))


def _rows(shards: Any) -> int:
    return sum(len(pack.rows) for packs in shards for pack in packs)
