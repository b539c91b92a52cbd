"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Option("--store", envvar="OPTUNE_STORE", help="Folder or s3://bucket/prefix of the artifacts.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, on top of the file.")]
Iteration = Annotated[
    int | None, typer.Option("--iteration", help="Of the policy, 0 being the run's start. Default: the last.")
]
Every = Annotated[bool, typer.Option("--all", help="All policies of the run.")]
