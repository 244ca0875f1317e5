"""Rows that are held out by lot are the same wherever, and in whatever parts, they are read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.draw import Draw, lots
from dfm.data.parquet import Unit, find_shards, read_unit

N_ROWS = 1_000


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(N_ROWS)}), path, row_group_size=300)
    return path


def kept(path: Path, draw: Draw, bounds: list[int]) -> list[int]:
    """Numbers of the rows that are read, in units cut at these rows."""
    (found,) = find_shards([str(path)])
    numbers: list[int] = []
    for start, stop in itertools.pairwise(bounds):
        for batch in read_unit(Unit(found, start, stop), ["n"]):
            numbers += batch.data.column("n").filter(pa.array(draw.keeps(batch))).to_pylist()
    return numbers


def test_lots_do_not_depend_on_how_rows_are_read_nor_on_the_folder(shard: Path, tmp_path: Path) -> None:
    draw = Draw(0.2, 0.5, True)
    whole = kept(shard, draw, [0, N_ROWS])
    assert kept(shard, draw, [0, 7, 299, 300, 650, N_ROWS]) == whole
    elsewhere = tmp_path / "copy" / "a.parquet"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(shard.read_bytes())
    assert kept(elsewhere, draw, [0, N_ROWS]) == whole
    assert kept(shard.rename(tmp_path / "b.parquet"), draw, [0, N_ROWS]) != whole


def test_every_row_is_drawn_or_left(shard: Path) -> None:
    drawn, left = (kept(shard, Draw(0.0, 0.1, keeps), [0, N_ROWS]) for keeps in (True, False))
    assert sorted(drawn + left) == list(range(N_ROWS))
    folds = [kept(shard, Draw(fold / 5, (fold + 1) / 5, True), [0, N_ROWS]) for fold in range(5)]
    assert sorted(row for fold in folds for row in fold) == list(range(N_ROWS))


def test_lots_are_even_and_unlike_each_other() -> None:
    found = np.concatenate([lots(f"x/{name}.parquet", first, 5_000) for name in "abc" for first in (0, 10**9)])
    counts = np.histogram(found, 20, (0.0, 1.0))[0]
    assert counts.sum() == len(found) == 30_000
    assert abs(counts / 1_500 - 1).max() < 0.1
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


def test_a_copy_of_the_data_elsewhere_has_its_batches_in_the_same_places(tmp_path: Path) -> None:
    """Rows to look at are drawn by place; files of one name in several folders have places of their own."""
    for day in ("1", "2"):
        for copy in ("here", "there"):
            folder = tmp_path / copy / f"day={day}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"n": range(N_ROWS)}), folder / "a.parquet", row_group_size=300)
    here, there = (
        [
            batch.place
            for shard in find_shards([str(tmp_path / copy)])
            for batch in read_unit(Unit(shard, 0, N_ROWS), ["n"])
        ]
        for copy in ("here", "there")
    )
    assert here == there
    assert len({*here}) == len(here) == 8
