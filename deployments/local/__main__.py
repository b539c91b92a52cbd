"""Start, stop and inspect the local stack: `python -m deployments.local up | down | status`."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from deployments.local.processes import StackError
from deployments.local.stack import DEPLOYMENTS, REPOSITORY, S3_PORT, UI_PORT, Stack

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Folder = Annotated[
    Path,
    typer.Option(
        envvar="OPTUNE_STACK_DIR",
        help="Folder of the stack's data, pids and logs.",
        show_default=".optune/stack of the repository",
    ),
]
Project = Annotated[Path, typer.Option(help="Folder of the flows.", show_default="the repository")]
PrefectFile = Annotated[str, typer.Option(help="File with the deployments, relative to the project.")]
UiPort = Annotated[int, typer.Option(help="Port of the Prefect server; if taken, or 0, any free one.")]
S3Port = Annotated[int, typer.Option(help="Port of the S3 server; if taken, or 0, any free one.")]
_HERE = REPOSITORY / ".optune/stack"


@app.command()
def up(
    folder: Folder = _HERE,
    project: Project = REPOSITORY,
    prefect_file: PrefectFile = DEPLOYMENTS,
    ui_port: UiPort = UI_PORT,
    s3_port: S3Port = S3_PORT,
) -> None:
    """Start PostgreSQL, S3, the Prefect server and two workers on 127.0.0.1, and deploy the flows."""
    stack = Stack(folder, project, prefect_file, ui_port=ui_port or None, s3_port=s3_port or None)
    stack.up(echo=typer.echo)
    typer.echo(f"\nUI     {stack.server.ui_url}")
    typer.echo(f"S3     {stack.s3.endpoint_url}  (credentials in {stack.env_file})")
    typer.echo("\nNext:")
    typer.echo(f"  source {shlex.quote(_short(stack.env_file))}")
    typer.echo("  .venv/bin/prefect deployment run optune/iterate -p config=configs/demo.yaml")


@app.command()
def down(
    folder: Folder = _HERE, wipe: Annotated[bool, typer.Option("--wipe", help="Delete the data too.")] = False
) -> None:
    """Stop the processes that `up` started. The data are kept, unless --wipe is given."""
    Stack(folder).down(wipe=wipe, echo=typer.echo)


@app.command()
def status(folder: Folder = _HERE) -> None:
    """Show which parts of the stack are running."""
    stack = Stack(folder)
    for part, state in stack.status().items():
        typer.echo(f"{part:20} {state}")


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    """Run the command line, and print a StackError as its message."""
    try:
        app()
    except StackError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
