"""`optune study`: the commands of the human study (Table 4)."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.cli.options import Store
from flows.request import DEFAULT_STORE

study = typer.Typer(help="The human study: people compare responses of two or three policies.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the study.")]


@study.command()
def create(
    name: Name,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    runs: Annotated[
        list[str] | None, typer.Option(metavar="RUN…", help="Runs whose last policies are compared: --runs A B C.")
    ] = None,
    responses: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE…", help="JSONL or Parquet files with the columns prompt and response."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Largest number of prompts a comparison.", min=1)] = 50,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Policy that the others are compared with. Default: the first is compared with each of them."
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Create a study: draw the pairs of responses that people compare."""
    from optune_core.console.study import print_created
    from optune_core.errors import StudyError
    from optune_core.storage import ArtifactStore, open_objects
    from optune_core.study.create import create_study

    # An option takes one value; the others of `--runs A B C` arrive as arguments.
    sources = [*(runs or []), *(responses or []), *(more or [])]
    files = [(source.partition("=")[0], source.partition("=")[2]) for source in sources if "=" in source]
    if nameless := [source for source in responses or [] if "=" not in source]:
        raise StudyError(f"--responses {nameless[0]!r} has no name: write it as NAME=FILE; results show the name")
    objects = open_objects(store)
    objects.require()
    print_created(
        create_study(ArtifactStore(objects), name, [run for run in sources if "=" not in run], files, prompts, baseline)
    )


@study.command()
def serve(
    name: Name,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free port.", min=0, max=65535)] = 8080,
    pairs_per_participant: Annotated[
        int, typer.Option(help="Pairs that each person who joins from now on compares.", min=1)
    ] = 50,
    store: Store = DEFAULT_STORE,
) -> None:
    """Serve the web page of the study; only this machine can reach it unless --host allows others."""
    from optune_core.storage import ArtifactStore, open_objects
    from optune_core.study.serve import serve_study

    serve_study(ArtifactStore(open_objects(store)), name, host, port, pairs_per_participant, typer.echo)


@study.command()
def results(
    name: Name,
    ratings: Annotated[
        str | None, typer.Option(metavar="FILE", help="File to which the ratings are written, as JSONL.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> None:
    """Print win, loss and tie percentages of each comparison (Table 4), and the agreement between people."""
    from optune_core.console.study import print_results, study_results

    summary = study_results(store, name, ratings)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        print_results(summary)
