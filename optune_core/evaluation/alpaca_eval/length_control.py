"""The length-controlled win rate (Dubois et al. 2024), as alpaca-eval computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optune_core.errors import JudgeError
from optune_core.evaluation.alpaca_eval.annotator import import_library

Row = dict[str, Any]

_REFERENCE, _POLICY = "reference", "policy"
"""The two sides' names in the library. With equal names it would return a win rate of 50 without any fit."""


def length_controlled(rows: list[Row], calibration: Path) -> dict[str, Any]:
    """Return the library's numbers of annotations: a logistic regression of the preference on the difference in
    length, the instruction's difficulty and the policy, from which the first is then left out.

    Args:
        rows: columns of ANNOTATIONS; a preference of None counts in no win rate.
        calibration: the library's df_gamed.csv.

    Returns:
        `win_rate` and `lc_win_rate` (0 to 100, 50 is even) with their standard errors; `discrete_win_rate`, where each
        preference counts as a full win or loss; `wins`, `losses`, `draws` and their sum `total`; mean lengths in
        characters.

    Raises:
        JudgeError: all differences in length are the same, so that nothing can be fitted.
    """
    import pandas as pd

    import_library()
    from alpaca_eval.metrics import glm_winrate

    rows = sorted(rows, key=lambda row: row["index"])  # as published: the folds of the fit follow the order
    if len({len(row["reference_output"]) - len(row["policy_output"]) for row in rows}) < 2:
        raise JudgeError(
            f"{len(rows)} annotations have one and the same difference in length: length control has nothing to fit. "
            "Judge on more prompts (prompts.sample)"
        )
    frame = pd.DataFrame(
        {
            "preference": [float("nan") if row["preference"] is None else row["preference"] for row in rows],
            "output_1": [row["reference_output"] for row in rows],
            "output_2": [row["policy_output"] for row in rows],
            "generator_1": _REFERENCE,
            "generator_2": _POLICY,
        },
        index=[row["index"] for row in rows],  # by which the library looks up difficulties
    )
    glm_winrate.hf_hub_download = lambda **file: str(calibration)  # it knows no other way to be given the file
    found = glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None, is_warn_extreme_changes=False)
    counts = {"wins": "n_wins", "losses": "n_wins_base", "draws": "n_draws", "total": "n_total"}
    rates = {
        "win_rate": "win_rate",
        "standard_error": "standard_error",
        "discrete_win_rate": "discrete_win_rate",
        "lc_win_rate": "length_controlled_winrate",
        "lc_standard_error": "lc_standard_error",
    }
    return (
        {name: float(found[theirs]) for name, theirs in rates.items()}
        | {name: int(found[theirs]) for name, theirs in counts.items()}
        | {
            "mean_length": float(frame["output_2"].str.len().mean()),
            "mean_reference_length": float(frame["output_1"].str.len().mean()),
        }
    )
