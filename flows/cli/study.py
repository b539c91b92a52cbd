"""`optune study`: the human study, from pairs to Table 4."""

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
    prompts: Annotated[int, typer.Option(help="Prompts a comparison, at most.", min=1)] = 50,
    baseline: Annotated[
        str | None, typer.Option(help="Compare the others with this one. Default: the first with each other one.")
    ] = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Draw the pairs that people will be asked about."""
    from optune_core.console.study import print_created
    from optune_core.errors import StudyError
    from optune_core.storage import ArtifactStore, open_objects
    from optune_core.study.create import create_study

    # An option takes one value; the others of `--runs A B C` arrive as arguments.
    sources = [*(runs or []), *(responses or []), *(more or [])]
    files = [(source.partition("=")[0], source.partition("=")[2]) for source in sources if "=" in source]
    if nameless := [source for source in responses or [] if "=" not in source]:
        raise StudyError(f"--responses {nameless[0]!r}: write it as NAME=FILE, the name is what results call it")
    objects = open_objects(store)
    objects.require()
    print_created(
        create_study(ArtifactStore(objects), name, [run for run in sources if "=" not in run], files, prompts, baseline)
    )


@study.command()
def serve(
    name: Name,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8080,
    pairs_per_participant: Annotated[int, typer.Option(help="For those who join from now on.", min=1)] = 50,
    store: Store = DEFAULT_STORE,
) -> None:
    """Serve the study's web page, on this machine only unless --host says otherwise."""
    from optune_core.storage import ArtifactStore, open_objects
    from optune_core.study.serve import serve_study

    serve_study(ArtifactStore(open_objects(store)), name, host, port, pairs_per_participant, typer.echo)


@study.command()
def results(
    name: Name,
    ratings: Annotated[str | None, typer.Option(metavar="FILE", help="Write the ratings there, as JSONL.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> None:
    """Win, loss and tie percentages of each comparison (Table 4), and how far people agree."""
    from optune_core.console.study import print_results, study_results

    summary = study_results(store, name, ratings)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        print_results(summary)
