"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Option("--store", envvar="OPTUNE_STORE", help="Folder or s3://bucket/prefix of the artifacts.")
]
