"""Tables read back as they were written, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from optune_core.data.schemas import SCORES, read_table, write_table
from optune_core.errors import DataError

ROWS = [{"prompt_id": str(i), "sample": i % 2, "reward": float(i), "outcome": "ok"} for i in range(100)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_table(pa.Table.from_pylist(ROWS, schema=SCORES), SCORES, tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def test_a_table_is_read_as_it_was_written(file: Path) -> None:
    assert read_table(file, SCORES).to_pylist() == ROWS


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_a_truncated_file_is_refused_by_name(file: Path, left: float) -> None:
    body = file.read_bytes()
    file.write_bytes(body[: int(left * (len(body) - 1))])
    with pytest.raises(DataError, match=r"scores\.parquet: not a readable Parquet file"):
        read_table(file, SCORES)


@pytest.mark.parametrize(
    "other",
    [
        pa.schema([*SCORES, ("more", pa.string())]).remove(2),  # no reward
        pa.schema([pa.field("prompt_id", pa.int64()), *list(SCORES)[1:]]),  # another type
    ],
)
def test_a_file_with_other_columns_is_refused_by_name(tmp_path: Path, other: pa.Schema) -> None:
    write_table(other.empty_table(), other, tmp_path / "scores.parquet")
    with pytest.raises(DataError, match=r"scores\.parquet"):
        read_table(tmp_path / "scores.parquet", SCORES)
