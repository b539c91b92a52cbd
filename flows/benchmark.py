"""Flow `benchmark`: tasks of lm-evaluation-harness on a run's policies (Table 3)."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.request import store_url
from optune_core.evaluation.loading import load_benchmark
from tasks.benchmark import commit_benchmark, open_benchmark, run_benchmark
from tasks.prepare import check_store
from tasks.support.logs import quiet_known_errors


@flow(name="benchmark", flow_run_name="benchmark {run}")
def benchmark(
    benchmark: str,
    run: str,
    iteration: int | None = None,
    every: bool = False,
    overrides: list[str] | None = None,
    store: str | None = None,
) -> list[dict[str, Any]]:
    """Run a benchmark's tasks on a run's policies. The same call continues.

    Args:
        benchmark: YAML file of the benchmark.
        run: the run whose policies are asked.
        iteration: t of the policy π_t, 0 being the run's start; default: the last one.
        every: all policies of the run.
        overrides: `key=value`, on top of the file.
        store: folder or s3://bucket/prefix; default: the environment's OPTUNE_STORE, else .optune/store.

    Returns:
        The records, as the run's ledger holds them.
    """
    quiet_known_errors()
    store = store_url(store)
    context = open_benchmark(store, run, load_benchmark(benchmark, overrides or []), iteration, every)
    check_store(store)
    return [commit_benchmark(context, t, run_benchmark(context, t)) for t in context.iterations]
