"""The results of runs and evaluations, read from the files of a store without the code that wrote them.

A record of the ledger refers to artifacts. Here each reference is replaced by the content of the artifact, whatever
its stage is called: Parquet tables as columns, JSON as it is, weights as a digest and two sums a tensor. Keys of
artifacts, clocks, paths and versions are left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ITERATIONS, HELD_OUT = "iterations", "held_out"
"""Folders of records below runs/<run>/."""
EVALUATIONS = {
    "win-score": "evaluations/win-score",
    "judged": "evaluations/judged",
    "alpaca-eval": "evaluations/alpaca-eval",
    "harness": "evaluations/harness",
}
"""Folders of the records of evaluations, by their kind."""
RUN = "run.json"
PREFERENCES = "preferences"
"""Parent of a trained reward model: the pairs that it was trained on."""

NO_RESULT = frozenset(
    {"started_from", "timing", "config", "configs", "baseline_model", "messages", "iteration", "name"}
    | {"judge", "annotator", "baseline", "arguments", "resps", "doc_hash", "prompt_hash", "target_hash"}
)
"""Fields that say how a result was made, label it for people, or repeat another field."""

Facts = dict[str, Any]


def run_facts(store: Path, run: str) -> Facts:
    """Return the facts of a run: its inputs, and a list of its iterations."""
    reader = _Reader(store)
    base = store / "runs" / run
    inputs = json.loads((base / RUN).read_text())["inputs"]
    facts: Facts = {"inputs": {}}
    for name, value in inputs.items():
        for reference in _references(value):
            facts["inputs"][name] = reader.content(reference)
            parents = reader.manifest(reference)["parents"]
            if PREFERENCES in parents:
                facts["inputs"][PREFERENCES] = reader.content(parents[PREFERENCES])
    iterations = [reader.content(record) for record in _records(base / ITERATIONS)]
    held_out = [reader.content(record, without="policy") for record in _records(base / HELD_OUT)]
    facts["iterations"] = [_by_cause(iteration.pop("artifacts") | iteration) for iteration in iterations]
    facts["held out"] = held_out
    return facts


def evaluation_facts(store: Path, run: str, kind: str, server: str | None) -> Facts:
    """Return the facts of an evaluation of a run's policies, a record a policy.

    Args:
        server: address of the judge, which is replaced.
    """
    reader = _Reader(store)
    records = [_in_recorded_form(record) for record in _records(store / "runs" / run / EVALUATIONS[kind])]
    found = [reader.content(record, without="policy") for record in records]
    text = json.dumps(found)
    return {"records": json.loads(text.replace(server, "<server>") if server else text)}


def _by_cause(iteration: Facts) -> Facts:
    """Return the parts of an iteration in the order in which they are made: the first difference is then its cause."""
    order = [name for name in ("selection", "responses", "scores", "replay", "policy") if name in iteration]
    return {name: iteration[name] for name in order} | iteration


def _in_recorded_form(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of an evaluation in the form that it had when the values were recorded."""
    kind, artifacts, metrics = record.pop("kind"), record.pop("artifacts"), record["metrics"]
    if kind != "harness":
        return record | {"artifact": artifacts.pop("summary")} | artifacts
    tasks = [task | {"artifact": ref} for task, ref in zip(metrics["tasks"], artifacts["tasks"], strict=True)]
    del record["metrics"]
    return record | {"tasks": tasks, "average": metrics["average"]}


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


class _Reader:
    def __init__(self, store: Path) -> None:
        self._store = store

    def manifest(self, reference: Facts) -> Facts:
        path = self._store / "artifacts" / reference["stage"] / reference["key"] / "manifest.json"
        return dict(json.loads(path.read_text()))

    def content(self, value: Any, without: str | None = None) -> Any:
        """Return a value of JSON with references replaced by the content of their artifacts."""
        if _is_reference(value):
            return self._artifacts([value])
        if isinstance(value, list) and value and all(_is_reference(each) for each in value):
            return self._artifacts(value)
        if isinstance(value, list):
            return [self.content(each) for each in value]
        if isinstance(value, dict):
            return {name: self.content(each) for name, each in value.items() if name not in NO_RESULT | {without}}
        return value

    def _artifacts(self, references: list[Facts]) -> Facts:
        """Return the content of artifacts, with the tables of shards made one."""
        tables: dict[tuple[str, ...], list[pa.Table]] = {}
        facts: Facts = {}
        for reference in references:
            manifest = self.manifest(reference)
            folder = self._store / "artifacts" / reference["stage"] / reference["key"] / manifest["attempt"]
            for name in sorted(manifest["files"]):
                path = folder / name
                if path.suffix == ".parquet":
                    table = pq.read_table(path)
                    tables.setdefault(tuple(table.column_names), []).append(table)
                elif path.suffix == ".safetensors":
                    facts.setdefault("weights", {})[path.parent.name] = _weights(path)
                elif path.suffix == ".jsonl":
                    facts["rows"] = [self.content(json.loads(line)) for line in path.read_text().splitlines()]
                elif path.suffix == ".json" and path.parent == folder:
                    facts["summary"] = self.content(json.loads(path.read_text()))
        if tables:
            facts["tables"] = [_columns(pa.concat_tables(shards)) for shards in tables.values()]
        return facts


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"stage", "key", "digest"}


def _references(value: Any) -> list[Facts]:
    """Return the references in a value of JSON."""
    if _is_reference(value):
        return [value]
    return [each for part in value.values() for each in _references(part)] if isinstance(value, dict) else []


def _columns(table: pa.Table) -> Facts:
    """Return a table's columns as lists; of token ids the digest of each row."""
    columns: Facts = {}
    for name in table.column_names:
        if name in NO_RESULT:
            continue
        column = table[name]
        values = column.to_pylist()
        if pa.types.is_list(column.type):
            values = [
                None if ids is None else hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] for ids in values
            ]
        columns[name] = values
    return columns


def _weights(path: Path) -> Facts:
    import torch
    from safetensors.torch import load_file

    tensors = {name: tensor.to(torch.float64) for name, tensor in sorted(load_file(path).items())}
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tensors": list(tensors),
        "sums": [float(values.sum()) for values in tensors.values()],
        "sums of squares": [float(values.square().sum()) for values in tensors.values()],
    }
