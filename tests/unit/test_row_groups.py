"""Parquet files as streams: their bytes depend on the rows and not on how the stream is cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.data import row_groups
from optune_core.data.row_groups import count_rows, in_groups, read_groups, read_rows, write_groups
from optune_core.data.schemas import PROMPTS, only
from optune_core.errors import DataError

ROWS = 50


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "ROW_GROUP", 8)


TABLE = pa.Table.from_pylist(
    [
        {
            "prompt_id": f"{i:04x}",
            "prompt": f"prompt {i}" * (i % 5),
            "messages": [{"role": "user", "content": str(turn)} for turn in range(i % 3)],
            "prompt_token_ids": list(range(i % 7)) if i % 6 else None,
        }
        for i in range(ROWS)
    ],
    schema=PROMPTS,
)


def cut(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    edges = [0, *sorted(cuts), table.num_rows]
    return [table.slice(a, b - a) for a, b in pairwise(edges)]


@given(cuts=st.lists(st.integers(0, ROWS), max_size=8))
def test_bytes_do_not_depend_on_how_the_stream_is_cut(cuts: list[int]) -> None:
    with TemporaryDirectory() as folder:
        uncut, pieces = Path(folder) / "uncut", Path(folder) / "pieces"
        write_groups([TABLE], PROMPTS, uncut)
        write_groups(iter(cut(TABLE, cuts)), PROMPTS, pieces)
        assert uncut.read_bytes() == pieces.read_bytes()
        assert pq.read_table(pieces).equals(TABLE)


@given(cuts=st.lists(st.integers(0, ROWS), max_size=8))
def test_all_groups_but_the_last_are_full(cuts: list[int]) -> None:
    groups = list(in_groups(cut(TABLE, cuts)))
    assert [group.num_rows for group in groups] == [8] * 6 + [2]
    assert pa.concat_tables(groups).equals(TABLE)


def test_several_files_read_as_one_stream_whatever_their_own_groups(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 33), tmp_path / "a")  # one group
    pq.write_table(TABLE.slice(33), tmp_path / "b", row_group_size=3)
    groups = list(read_groups([tmp_path / "a", tmp_path / "b"], PROMPTS))
    assert [group.num_rows for group in groups] == [8] * 6 + [2]
    assert pa.concat_tables(groups).equals(TABLE)


@given(first=st.integers(0, ROWS - 1), count=st.integers(1, ROWS))
def test_any_range_of_rows_is_read_across_groups(first: int, count: int) -> None:
    with TemporaryDirectory() as folder:
        write_groups([TABLE], PROMPTS, Path(folder) / "file")
        narrow = only(PROMPTS, "prompt_token_ids", "prompt_id")
        rows = read_rows(Path(folder) / "file", narrow, first, count)
        assert rows.equals(TABLE.slice(first, count).select(narrow.names))


def test_a_file_without_rows_is_written_and_read(tmp_path: Path) -> None:
    write_groups([], PROMPTS, tmp_path / "file")
    assert count_rows(tmp_path / "file") == 0
    assert list(read_groups([tmp_path / "file"], PROMPTS)) == []


def test_a_damaged_group_is_refused_by_name(tmp_path: Path) -> None:
    write_groups([TABLE], PROMPTS, tmp_path / "file")
    body = bytearray((tmp_path / "file").read_bytes())
    body[4:600] = bytes(596)
    (tmp_path / "file").write_bytes(body)
    with pytest.raises(DataError, match="file: not a readable Parquet file"):
        list(read_groups([tmp_path / "file"], PROMPTS))
