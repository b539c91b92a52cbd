"""A pickle that leaves a trace if it is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)
