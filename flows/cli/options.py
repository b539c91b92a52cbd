"""Options and arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Option("--store", envvar="OPTUNE_STORE", help="Folder or s3://bucket/prefix of the artifacts.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, applied on top of the file.")]
Iteration = Annotated[
    int | None,
    typer.Option("--iteration", help="Number of the policy; 0 is the policy the run started from. Default: the last."),
]
Every = Annotated[bool, typer.Option("--all", help="All policies of the run.")]
