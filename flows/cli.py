"""The command line `optune`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="OPTune: efficient online preference tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Store = Annotated[
    str, typer.Option("--store", envvar="OPTUNE_STORE", help="Folder or s3://bucket/prefix of the artifacts.")
]
DEFAULT_STORE = ".optune/store"
_INTERRUPTED = 130
_GRACE_SECONDS = 5.0


def main() -> None:
    """Entry point: an error that a user can mend is shown as its message, with exit status 2."""
    from optune_core.errors import OptuneError, TransientError

    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except (OptuneError, TransientError) as error:
        typer.secho(f"\n{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _interrupt(number: int, frame: object) -> None:
    """End soon, whatever happens. What is committed stays; the child ends with this process.

    Prefect is given a moment to record the end: its temporary server may have got the same signal, and it would
    then try to reach it for minutes.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    typer.secho("\nInterrupted. The same command continues where it stopped.", err=True)
    last = threading.Timer(_GRACE_SECONDS, _leave)
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


def _leave() -> None:
    """Exit at once, and take the temporary server along."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(_INTERRUPTED)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, on top of it.")] = None,
    store: Store = DEFAULT_STORE,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run. Default: the configuration's.")] = None,
) -> None:
    """Run the iterations of an experiment, or continue them."""
    from optune_core.config import load_config

    load_config(config, overrides or [])  # all problems of the configuration, before anything is started
    _quiet_prefect()
    from flows.iterate import optune
    from optune_core.cli.show import print_summary

    summary: Any = optune(config, overrides, store, run)
    print_summary(store, summary)


@app.command("reward-model")
def reward_model(
    config: Annotated[str, typer.Argument(help="YAML file with reward.type: trained.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, on top of it.")] = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Train the Bradley-Terry reward model of an experiment."""
    from optune_core.config import load_config

    load_config(config, overrides or [])
    _quiet_prefect()
    from flows.reward_model import reward_model as flow
    from optune_core.cli.show import print_artifact

    trained: Any = flow(config, overrides, store)
    print_artifact(store, trained["stage"], trained["key"])


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Name of the run. Default: all runs, a line each.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> None:
    """Where runs stand, read from the store alone."""
    from optune_core.cli.show import print_run, print_runs, run_status, runs_status

    if as_json:
        typer.echo(json.dumps(runs_status(store) if run is None else run_status(store, run), indent=2))
    elif run is None:
        print_runs(store)
    else:
        print_run(store, run)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="STAGE/KEY of an artifact (a prefix of the key will do), or a prompt id.")
    ],
    store: Store = DEFAULT_STORE,
    run: Annotated[str | None, typer.Option("--run", help="Run whose iterations to follow a prompt through.")] = None,
) -> None:
    """Show an artifact, or a prompt's history through the iterations of a run."""
    from optune_core.cli.show import print_artifact, print_history

    if "/" in what:
        stage, _, key = what.partition("/")
        print_artifact(store, stage, key)
    else:
        print_history(store, run, what)


def _quiet_prefect() -> None:
    """Prefect's own defaults for a run without a server of the user's: no telemetry, no banners."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "INFO",
    }.items():
        os.environ.setdefault(name, value)
