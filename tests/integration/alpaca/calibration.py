"""A calibration file made by annotators who prefer longer outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def write_calibration(path: Path, instructions: int) -> Path:
    """Write the annotations of two baselines that differ from the reference only in length."""
    rng = np.random.default_rng(5)
    difficulty = rng.normal(size=instructions)
    lines = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for name, shift in (("concise", 1.2), ("verbose", -1.2)):
        delta = rng.normal(shift, 1.0, instructions)
        liked = logistic(-np.tanh(delta))
        for index in range(instructions):
            lines.append(f"{name},{liked[index]},{index},{delta[index]},{difficulty[index]},False")
    path.write_text("\n".join(lines) + "\n")
    return path
