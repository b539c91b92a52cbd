"""The inputs of AlpacaEval 2 besides a policy's answers: reference outputs, and the calibration of length control."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass

from optune_core.data.sources import describe, read_bytes, read_source, require_columns
from optune_core.errors import DataError
from optune_core.evaluation.alpaca_eval.sections import Instructions

_CALIBRATION = ("model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True)
class Reference:
    """The output that a policy's output is compared with."""

    index: int
    """Row of the source, from 0, by which the calibration names the instruction."""
    output: str
    generator: str


def read_references(prompts: Instructions) -> dict[str, Reference]:
    """Return the references, by their instruction, in the source's order.

    Raises:
        DataError: the source cannot be read, a column is missing, a cell is no text, or an instruction occurs twice.
    """
    table = read_source(prompts.source)
    require_columns(table, [prompts.column, prompts.output], prompts.source)
    references: dict[str, Reference] = {}
    for index, row in enumerate(table.to_pylist()):
        instruction, output = row[prompts.column], row[prompts.output]
        for column, text in ((prompts.column, instruction), (prompts.output, output)):
            if not isinstance(text, str):
                raise DataError(
                    f"{describe(prompts.source)}, row {index}: {column} = {text!r} is no text, and the calibration "
                    "counts all rows: use the file as it was published"
                )
        if instruction in references:
            raise DataError(
                f"{describe(prompts.source)} has the instruction {instruction[:120]!r} in rows "
                f"{references[instruction].index} and {index}: an instruction has one difficulty, keep one row"
            )
        references[instruction] = Reference(index, output, str(row.get(prompts.generator) or "reference"))
    return references


def generators(references: dict[str, Reference]) -> str:
    """Return who wrote the reference outputs, for people."""
    return ", ".join(sorted({reference.generator for reference in references.values()}))


def calibration_digest(path: str) -> str:
    """Return the SHA-256 of the calibration.

    Raises:
        DataError: it cannot be read; the message names the remedy.
    """
    return hashlib.sha256(_read_calibration(path)).hexdigest()


def check_calibration(path: str, instructions: int) -> bytes:
    """Return the calibration's bytes, after checking that they are for that many instructions.

    Raises:
        DataError: it cannot be read, is not a calibration, or is for other instructions.
    """
    body = _read_calibration(path)
    try:
        rows = csv.DictReader(body.decode().splitlines())
        missing = set(_CALIBRATION) - set(rows.fieldnames or ())
        known = set() if missing else {int(float(row["index"])) for row in rows}
    except ValueError as error:
        raise DataError(f"calibration {path!r} cannot be parsed: {error}. It is the CSV file df_gamed.csv") from error
    if missing:
        raise DataError(
            f"calibration {path!r} has no column {', '.join(sorted(missing))}: it is the CSV file df_gamed.csv of the "
            "data set tatsu-lab/alpaca_eval, with " + ", ".join(_CALIBRATION)
        )
    if known != set(range(instructions)):
        raise DataError(
            f"calibration {path!r} is for {len(known)} instructions, prompts.source has {instructions}: a calibration "
            "belongs to the very instructions, in their published order. Use the file that was published with it "
            "(and judge on fewer with prompts.sample)"
        )
    return body


def _read_calibration(path: str) -> bytes:
    try:
        return read_bytes(path)
    except DataError as error:
        raise DataError(
            f"calibration: {error}. Length control cannot be fitted without it: download df_gamed.csv of the data set "
            "tatsu-lab/alpaca_eval where the hub can be reached, and name the copy in `calibration`"
        ) from error
