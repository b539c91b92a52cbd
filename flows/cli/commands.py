"""Commands of the command line `optune`. Each command imports heavy modules itself, so that `--help` is fast."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.cli.options import Every, Iteration, Overrides, Store
from flows.cli.shutdown import INTERRUPTED, interrupt
from flows.cli.study import study
from flows.request import DEFAULT_STORE, requested

app = typer.Typer(
    help="OPTune: efficient online preference tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(study, name="study")


def main() -> None:
    """Run the command line; an error of the project is shown as its message, with exit status 2."""
    from optune_core.errors import OptuneError, TransientError
    from optune_core.secrets import redact

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        app()
    except (OptuneError, TransientError) as error:
        typer.secho(redact(f"\n{type(error).__name__}: {error}"), fg=typer.colors.RED, err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


@app.command()
def run(
    config: Annotated[
        str | None,
        typer.Argument(help="YAML file of the experiment. Default, with --run: the configuration of its last start."),
    ] = None,
    overrides: Overrides = None,
    store: Store = DEFAULT_STORE,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run. Default: the configuration's.")] = None,
    new_run: Annotated[bool, typer.Option("--new-run", help="Start another run, named NAME-2, NAME-3, …")] = False,
) -> None:
    """Run the iterations of an experiment, or continue them."""
    # Problems of the configuration are reported before Prefect starts.
    _, name = requested(config, overrides or [], store, run)
    if new_run:
        from optune_core.storage import open_objects
        from optune_core.storage.ledger import unused_name

        run = unused_name(open_objects(store), name)
        typer.echo(f"run {run}")
    _quiet_prefect()
    from flows.run import optune
    from optune_core.console.show import print_summary

    summary: Any = optune(config, overrides, store, run)
    print_summary(store, summary)


@app.command()
def sweep(
    config: Annotated[str, typer.Argument(help="YAML file of the sweep.")],
    overrides: Overrides = None,
    store: Store = DEFAULT_STORE,
    parallel: Annotated[
        int | None, typer.Option(help="Cells computed at once on this machine. Default: `parallel` of the file.", min=1)
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Deployment that runs the cells on a work pool, such as optune/iterate.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Only show the progress and the results so far.")] = False,
    figures: Annotated[str | None, typer.Option(help="Folder for a further copy of the figures.")] = None,
) -> None:
    """Run a grid of experiments, or continue it; common work is computed once."""
    from optune_core.sweep.grid import load_sweep

    wanted = load_sweep(config, overrides or [])  # problems are reported before Prefect starts
    from optune_core.console.sweep import print_sweep
    from optune_core.errors import OptuneError

    if table:
        print_sweep(store, wanted, figures)
        return
    _quiet_prefect()
    from flows.sweep import sweep as flow

    try:
        flow(config, overrides, store, deployment, parallel, figures)
    except OptuneError:  # cells failed; the results of the others are shown nevertheless
        print_sweep(store, wanted)
        raise
    print_sweep(store, wanted)


@app.command("reward-model")
def reward_model(
    config: Annotated[str, typer.Argument(help="YAML file with reward.type: trained.")],
    overrides: Overrides = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Train the Bradley-Terry reward model of an experiment."""
    from optune_core.config import load_config

    load_config(config, overrides or [])
    _quiet_prefect()
    from flows.reward_model import reward_model as flow
    from optune_core.console.show import print_artifact

    trained: Any = flow(config, overrides, store)
    print_artifact(store, trained.stage, trained.key)


@app.command()
def evaluate(
    evaluation: Annotated[
        str, typer.Argument(help="YAML file of the evaluation, such as configs/evaluation/demo.yaml.")
    ],
    run: Annotated[str, typer.Option("--run", help="Run whose policies are evaluated.")],
    overrides: Overrides = None,
    iteration: Iteration = None,
    every: Every = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Evaluate a run's policies (win score, AlpacaEval 2, lm-evaluation-harness), and print the results."""
    from optune_core.evaluation.loading import load_evaluation

    load_evaluation(evaluation, overrides or [])
    _quiet_prefect()
    from flows.evaluate import evaluate as flow
    from optune_core.console.evaluate import print_evaluation

    records: Any = flow(evaluation, run, iteration, every, overrides, store)
    print_evaluation(run, records)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Name of the run. Default: all runs, a line each.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> None:
    """Show the progress of a run or of all runs, as the store has it."""
    from optune_core.console.show import print_run, print_runs, run_status, runs_status

    if as_json:
        shown: Any = runs_status(store) if run is None else run_status(store, run)
        typer.echo(json.dumps(shown, indent=2, default=asdict))
    elif run is None:
        print_runs(store)
    else:
        print_run(store, run)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Names of runs; several are compared.")],
    store: Store = DEFAULT_STORE,
    out: Annotated[str, typer.Option("--out", help="HTML file to write.")] = "report.html",
) -> None:
    """Write a self-contained HTML page about runs: results, changes and warnings."""
    from pathlib import Path

    from optune_core.console.report import write_report

    write_report(store, runs, Path(out))
    typer.echo(out)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="Device: a100-80gb, h100 or cpu. Default: a100-80gb; required with --run.")
    ] = None,
    devices: Annotated[int, typer.Option(help="Number of devices that each stage uses.", min=1)] = 1,
    engines: Annotated[
        int | None,
        typer.Option(
            help="Engines in parallel. Default: generation.engine.replicas, else devices // tensor_parallel_size.",
            min=1,
        ),
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="Number of prompts. Default: prompts.sample.", min=1)] = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(help="Mean tokens a prompt. Default: that of --run, else the maximum (an upper bound)."),
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(help="Mean tokens a response. Default: as for a prompt.")
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(help="Number of weights of the policy, such as 7.2e9. Default: that of its model.", min=1.0),
    ] = None,
    store: Store = DEFAULT_STORE,
    run: Annotated[
        str | None, typer.Option("--run", help="Run whose measured times replace the assumed rates of the device.")
    ] = None,
    run_devices: Annotated[int, typer.Option(help="Number of devices that the run of --run was made on.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> None:
    """Predict the time of each stage and the time that selective regeneration saves; nothing is started."""
    from optune_core.config import load_config
    from optune_core.console.plan import PlanOptions, make_plan, plan_json, print_plan

    options = PlanOptions(
        device, devices, engines, prompts, prompt_tokens, response_tokens, parameters, run, run_devices
    )
    made = make_plan(load_config(config, overrides or []), store, options)
    if as_json:
        typer.echo(json.dumps(plan_json(made), indent=2))
    else:
        print_plan(made)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="STAGE/KEY of an artifact (a prefix of the key suffices), or the id of a prompt.")
    ],
    store: Store = DEFAULT_STORE,
    run: Annotated[str | None, typer.Option("--run", help="Run in whose iterations a prompt is looked up.")] = None,
) -> None:
    """Show an artifact, or the history of a prompt in the iterations of a run."""
    from optune_core.console.show import print_artifact, print_history

    if "/" in what:
        stage, _, key = what.partition("/")
        print_artifact(store, stage, key)
    else:
        print_history(store, run, what)


@app.command()
def gc(
    store: Store = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    grace: Annotated[
        float, typer.Option(help="Age in hours below which data that nothing refers to is kept.", min=0.0)
    ] = 24.0,
    masters: Annotated[
        bool,
        typer.Option(
            "--masters",
            help="Also delete the float32 weights of all policies but the last of each run: two thirds of their bytes. "
            "These policies can still be evaluated; a new run that starts from one trains it again.",
        ),
    ] = False,
) -> None:
    """Delete data that no run needs: unused artifacts, data of failed attempts, left-over temporary files."""
    from optune_core.console.collect import print_collection

    print_collection(store, dry_run=dry_run, grace_hours=grace, masters=masters)


def _quiet_prefect() -> None:
    """Set defaults for runs without a Prefect server of the user: no telemetry, no banners, time to start a server."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 s are too few on a busy machine
    }.items():
        os.environ.setdefault(name, value)
