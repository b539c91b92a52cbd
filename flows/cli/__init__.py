"""The command line `optune`."""

from flows.cli.commands import main

__all__ = ["main"]
