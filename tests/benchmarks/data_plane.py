"""Seconds and peak memory of selection, merge and statistics as functions of the number of prompts.

Each step is the real stage on a store on the local disk (SHA-256 of every file read and written included), or the real
function, in a fresh process, so that its peak memory can be read. The input is synthetic; making it is not measured.

    python -m tests.benchmarks.data_plane --json FILE [--sizes 100000 1000000 10000000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from optune_core.data.row_groups import ROW_GROUP, read_groups, write_groups
from optune_core.data.schemas import PROMPTS, REPLAY, RESPONSES, SCORES, only
from optune_core.data.shards import REPLAY_FILE, SELECTION_FILE
from optune_core.selection.registry import SELECTORS
from optune_core.stages import replay, selection
from optune_core.statistics import replay_statistics, without_texts
from optune_core.storage import ArtifactStore, Ref, Work, open_objects

RHO, SAMPLES = 0.5, 2
PROMPT_TOKENS, RESPONSE_TOKENS = 16, 24
SHARD = 1_000_000
"""Number of prompts in a shard of responses."""
BYTES_PER_PROMPT = 1500
"""Upper bound of the bytes that a prompt takes in all files together."""
STEPS = ("selection", "selection/relative", "selection/bandit", "merge", "statistics")
"""`selection` is the paper's selector; `selection/…` are selectors that read more columns."""


def main() -> None:
    """Measure all steps at all sizes, or one step with --step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--folder", type=Path, help="folder for the temporary store (default: the system's)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, options.store)))
        return
    results = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            free = shutil.disk_usage(folder).free
            if free < size * BYTES_PER_PROMPT:
                sys.exit(
                    f"{size:,} prompts need up to {size * BYTES_PER_PROMPT:,} bytes in {folder}, but {free:,} are "
                    f"free: name another folder with --folder, or fewer prompts with --sizes"
                )
            results += benchmark(size, folder)
    report = {"rows": describe(), "load": os.getloadavg(), "results": results, "slopes": slopes(results)}
    print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def benchmark(size: int, folder: str) -> list[dict[str, Any]]:
    """Run the steps one after another on a fresh input of this size."""
    store = ArtifactStore(open_objects(folder))
    started = time.monotonic()
    write_replay(store, size)
    results = []
    for step in STEPS:
        if step == "merge":
            write_responses(store)
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "tests.benchmarks.data_plane", "--step", step, "--store", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = {"step": step, "prompts": size, **json.loads(done.stdout), "load_before": load}
        result["prompts_per_second"] = size / result["seconds"]
        results.append(result)
    stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    seconds = time.monotonic() - started
    print(
        f"{size:,} prompts: {stored / size:.0f} bytes a prompt in all files, {seconds:.0f} s with the input", flush=True
    )
    return results


def measure(step: str, folder: str) -> dict[str, float]:
    """Run one step in this process."""
    store = ArtifactStore(open_objects(folder))
    before = peak_mib()
    started = time.monotonic()
    cpu = time.process_time()
    if step.startswith("selection"):
        _, _, selector = step.partition("/")
        selection.run(store, selection_spec(store, selector or "optune"), lambda *_: None)
    elif step == "merge":
        replay.run(store, replay_spec(store), lambda *_: None)
    else:
        statistics(store)
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib(),
        "imports_mib": before,
    }


def statistics(store: ArtifactStore) -> None:
    """Compute the statistics of D_1 from its file, as the merge computes them."""
    before = read_groups([replay_file(store)], only(REPLAY, "chosen_reward"))
    previous = pa.concat_tables(before)["chosen_reward"]
    (work,) = replay.works(store, replay_spec(store))
    found = store.find(work)
    assert found is not None
    names = ("reward", "token_ids")
    columns = [f"{side}_{name}" for side in ("chosen", "rejected") for name in names]
    schema = only(REPLAY, *columns, "generated_at", "sampled_from", "status")
    file = store.fetch(found.ref) / REPLAY_FILE
    narrow = pa.concat_tables(without_texts(group) for group in read_groups([file], schema))
    result = replay_statistics(previous, narrow, 1)
    assert result["pairs"] == found.metrics["pairs"]


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- the synthetic input


def write_replay(store: ArtifactStore, size: int) -> None:
    """Write D_0, in which one prompt in a hundred has no pair."""

    def groups() -> Iterator[pa.Table]:
        for first in range(0, size, ROW_GROUP):
            yield replay_group(np.random.default_rng([0, first]), min(ROW_GROUP, size - first))

    with store.scratch() as folder:
        write_groups(groups(), REPLAY, folder / REPLAY_FILE)
        store.commit(Work("replay", 0, {}), folder)


def replay_group(random: np.random.Generator, rows: int) -> pa.Table:
    """Return a row group of D_0."""
    paired = random.random(rows) > 0.01
    rewards = np.sort(random.normal(size=(2, rows)), axis=0)
    columns: dict[str, Any] = {
        "prompt_id": hex_ids(random, rows),
        "prompt": texts(random, rows, PROMPT_TOKENS),
        "prompt_token_ids": token_ids(random, rows, PROMPT_TOKENS),
    }
    columns["messages"] = messages(columns["prompt"])
    for reward, side in zip(rewards, ("rejected", "chosen"), strict=True):
        columns[side] = texts(random, rows, RESPONSE_TOKENS)
        columns[f"{side}_token_ids"] = token_ids(random, rows, RESPONSE_TOKENS)
        columns[f"{side}_reward"] = pa.array(reward)
        columns[f"{side}_policy_logps"] = pa.array(-random.random(rows))
    for name in ("generated_at", "sampled_from"):
        columns[name] = pa.array(np.zeros(rows, np.int32))
    for name in columns:
        if name not in PROMPTS.names:
            columns[name] = pc.if_else(pa.array(paired), columns[name], pa.scalar(None, columns[name].type))
    columns |= history(random, rewards, paired)
    columns["status"] = pa.array(["unpaired", "regenerated"]).take(pa.array(paired.astype(int)))
    columns["reason"] = pa.array(["tied", None]).take(pa.array(paired.astype(int)))
    return pa.table({name: columns[name] for name in REPLAY.names}, schema=REPLAY)


def history(random: np.random.Generator, rewards: np.ndarray[Any, Any], paired: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return a history as after some iterations, so that every selector has something to rank by."""
    regenerations = np.where(paired, random.integers(4, size=len(paired)), 0).astype(np.int32)
    return {
        "responses_scored": pa.array(np.where(paired, SAMPLES * (regenerations + 1), 0).astype(np.int32)),
        "reward_mean": pa.array(rewards.mean(axis=0), mask=~paired),
        "reward_variance": pa.array(rewards.var(axis=0), mask=~paired),
        "regenerations": pa.array(regenerations),
        "gain_mean": pa.array(random.normal(size=len(paired)), mask=regenerations == 0),
    }


def write_responses(store: ArtifactStore) -> None:
    """Write responses to the selected prompts and their scores, in shards of SHARD prompts."""
    (work,) = selection.works(store, selection_spec(store))
    found = store.find(work)
    assert found is not None
    selected = store.fetch(found.ref) / SELECTION_FILE
    shards = math.ceil(pq.read_metadata(selected).num_rows / SHARD)
    groups = response_groups(read_groups([selected], PROMPTS))
    per_shard = math.ceil(SHARD / ROW_GROUP)
    for number in range(shards):
        with store.scratch() as responses, store.scratch() as scores:
            with pq.ParquetWriter(scores / "scores.parquet", SCORES, compression="zstd") as writer:

                def both(writer: pq.ParquetWriter = writer) -> Iterator[pa.Table]:
                    for _, (response, score) in zip(range(per_shard), groups, strict=False):
                        writer.write_table(score)
                        yield response

                write_groups(both(), RESPONSES, responses / "responses.parquet")
            store.commit(Work("responses", 0, {"shard": number}), responses)
            store.commit(Work("scores", 0, {"shard": number}), scores)
    assert next(groups, None) is None


def response_groups(prompts: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield (responses, scores) for each row group of prompts."""
    for number, group in enumerate(prompts):
        random = np.random.default_rng([1, number])
        rows = group.num_rows * SAMPLES
        columns = dict(zip(PROMPTS.names, group.take(pa.array(np.arange(rows) // SAMPLES)).columns, strict=True))
        columns["sample"] = pa.array((np.arange(rows) % SAMPLES).astype(np.int32))
        columns["response"] = texts(random, rows, RESPONSE_TOKENS)
        columns["response_token_ids"] = token_ids(random, rows, RESPONSE_TOKENS)
        columns["finish_reason"] = pa.repeat("stop", rows)
        columns["policy_logps"] = pa.array(-random.random(rows))
        outcomes = random.choice(3, size=rows, p=[0.98, 0.01, 0.01])
        scores = {
            "prompt_id": columns["prompt_id"],
            "sample": columns["sample"],
            "reward": pa.array(random.normal(size=rows), mask=outcomes > 0),
            "outcome": pa.array(["ok", "empty", "truncated"]).take(pa.array(outcomes)),
        }
        yield pa.table(columns, schema=RESPONSES), pa.table(scores, schema=SCORES)


def hex_ids(random: np.random.Generator, rows: int) -> pa.Array:
    """Return ids of 32 hexadecimal digits."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[random.integers(16, size=rows * 32)]
    return strings(digits, np.arange(rows + 1, dtype=np.int32) * 32)


def texts(random: np.random.Generator, rows: int, tokens: int) -> pa.Array:
    """Return texts of letters and spaces, about four a token."""
    offsets = np.append(0, np.cumsum(lengths(random, rows, tokens) * 4)).astype(np.int32)
    letters = np.frombuffer(b"  etaoinshrdlucm", np.uint8)[random.integers(16, size=offsets[-1])]
    return strings(letters, offsets)


def strings(data: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> pa.Array:
    """Return strings from their bytes, uint8, and offsets, int32, (rows + 1,)."""
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def token_ids(random: np.random.Generator, rows: int, tokens: int) -> pa.Array:
    """Draw lists of token ids, int32, `tokens` on average."""
    offsets = np.append(0, np.cumsum(lengths(random, rows, tokens))).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(random.integers(32_000, size=offsets[-1], dtype=np.int32))
    )


def lengths(random: np.random.Generator, rows: int, tokens: int) -> np.ndarray[Any, Any]:
    """Draw lengths, int64, (rows,), `tokens` on average."""
    return random.integers(tokens // 2, tokens + tokens // 2, size=rows)


def messages(prompts: pa.Array) -> pa.Array:
    """Return one message of a user a prompt."""
    turns = pa.StructArray.from_arrays([pa.repeat("user", len(prompts)), prompts], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(prompts) + 1, dtype=np.int32)), turns)


# ---------------------------------------------------------------- specs of the stages


def selection_spec(store: ArtifactStore, selector: Any = "optune") -> selection.Spec:
    """Return the spec of the selection of iteration 1."""
    chosen = SELECTORS.parse({"type": selector, "rho": RHO})
    return selection.Spec(selector=chosen, seed=0, iteration=1, previous=stored(store, "replay", {}))


def replay_spec(store: ArtifactStore) -> replay.Spec:
    """Return the spec of the merge of iteration 1."""
    (work,) = selection.works(store, selection_spec(store))
    found = store.find(work)
    assert found is not None
    shards = range(math.ceil(found.metrics["selected"] / SHARD))
    responses, scores = (
        [stored(store, stage, {"shard": number}) for number in shards] for stage in ("responses", "scores")
    )
    return replay.Spec(
        iteration=1,
        previous=stored(store, "replay", {}),
        selection=found.ref,
        responses=responses,
        scores=scores,
        sampled_from=1,
    )


def stored(store: ArtifactStore, stage: str, params: dict[str, Any]) -> Ref:
    """Return the reference to an artifact of the synthetic input."""
    found = store.find(Work(stage, 0, params))
    assert found is not None
    return found.ref


def replay_file(store: ArtifactStore) -> Path:
    """Return the file of D_0."""
    return store.fetch(stored(store, "replay", {})) / REPLAY_FILE


# ---------------------------------------------------------------- the report


def describe() -> dict[str, Any]:
    """Return the constants of the measurement."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "samples": SAMPLES,
        "rho": RHO,
        "prompts_a_shard": SHARD,
        "row_group": ROW_GROUP,
        "cores": os.cpu_count(),
    }


def slopes(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the exponent of growth of each number from the smallest to the largest size (1 is linear)."""
    found = {}
    for step in STEPS:
        rows = sorted((row for row in results if row["step"] == step), key=lambda row: row["prompts"])
        size = [math.log(row["prompts"]) for row in rows]
        if len(rows) > 1:
            found[step] = {
                name: float(np.polyfit(size, [math.log(row[name]) for row in rows], 1)[0])
                for name in ("seconds", "cpu_seconds", "peak_mib")
            }
    return found


def print_table(report: dict[str, Any]) -> None:
    """Print the measurements and the slopes."""
    print(f"{'step':12} {'prompts':>12} {'seconds':>9} {'CPU s':>9} {'prompts/s':>12} {'peak MiB':>9} {'load':>6}")
    for row in report["results"]:
        print(
            f"{row['step']:12} {row['prompts']:12,} {row['seconds']:9.2f} {row['cpu_seconds']:9.2f} "
            f"{row['prompts_per_second']:12,.0f} {row['peak_mib']:9.0f} {row['load_before']:6.2f}"
        )
    for step, slope in report["slopes"].items():
        print(f"{step}: " + ", ".join(f"{name} grows as prompts^{value:.2f}" for name, value in slope.items()))


if __name__ == "__main__":
    main()
