"""Rows that are held out by lot are the same wherever, and in whatever parts, they are read."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.draw import Draw, Sampling, lots
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
    assert kept(elsewhere, draw, [0, N_ROWS]) == kept(elsewhere.parent, draw, [0, N_ROWS]) == whole
    assert kept(shard.rename(tmp_path / "b.parquet"), draw, [0, N_ROWS]) != whole


def many_folders(root: Path, layout: str, n_files: int = 400, n_rows: int = 10) -> Path:
    """Files of one name, a folder each."""
    for number in range(n_files):
        folder = root / layout.format(number // 24, number % 24)
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"n": range(n_rows)}), folder / "part-0.parquet")
    return root


def drawn(paths: list[Path], draw: Draw | Sampling) -> dict[str, list[int]]:
    """Numbers of the rows that stay, by the URL of their shard."""
    found = {}
    for shard in find_shards([str(path) for path in paths]):
        (batch,) = read_unit(Unit(shard, 0, shard.n_rows), ["n"])
        negative = np.ones(shard.n_rows, np.bool_)
        keeps = draw.keeps(batch) if isinstance(draw, Draw) else draw.keeps(batch, negative)
        found[shard.url] = np.flatnonzero(keeps).tolist()
    return found


@pytest.mark.parametrize("layout", ["day={}/hour={}", "{}/{}", "day={}/{}"])
@pytest.mark.parametrize("draw", [Draw(0.0, 0.2, True), Sampling(0.2, 7)], ids=["held out", "negatives"])
def test_files_of_one_name_in_many_folders_draw_lots_of_their_own(
    tmp_path: Path, layout: str, draw: Draw | Sampling
) -> None:
    """Engines call the file of every folder alike: each row as one lot would keep all or none of ten rows' places."""
    log = many_folders(tmp_path / "log", layout)
    whole = drawn([log], draw)
    assert sum(map(len, whole.values())) == pytest.approx(0.2 * 4_000, rel=0.15)
    assert {row for rows in whole.values() for row in rows} == set(range(10))
    copy = shutil.copytree(log, tmp_path / "elsewhere" / "copy")
    assert [*drawn([copy], draw).values()] == [*whole.values()]


def test_a_folder_with_the_value_of_a_column_has_the_same_lots_however_it_is_named(tmp_path: Path) -> None:
    log, draw = many_folders(tmp_path / "log", "day={}/hour={}", 48), Draw(0.0, 0.5, True)
    whole = drawn([log], draw)
    some = drawn([log / "day=1"], draw)
    assert some == {url: rows for url, rows in whole.items() if "/day=1/" in url}
    both = [log / "day=1", log / "day=0" / "hour=*" / "*.parquet"]
    assert drawn(both, draw) == drawn(both[::-1], draw) == whole


def test_folders_that_are_named_one_by_one_are_told_apart(tmp_path: Path) -> None:
    log, draw = many_folders(tmp_path / "log", "{}/{}", 48), Draw(0.0, 0.5, True)
    whole = drawn([log], draw)
    days = [log / "0", log / "1"]
    assert drawn(days, draw) == drawn(days[::-1], draw) == drawn([*days, log], draw) == whole
    assert drawn([path.parent for path in sorted(log.rglob("*.parquet"))], draw) == whole


def test_no_two_files_have_one_place_however_folders_are_named(tmp_path: Path) -> None:
    for name in ("a/p", "b/p", "c/a/p"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"n": range(8)}), tmp_path / f"{name}.parquet")
    shards = find_shards([str(tmp_path / folder) for folder in "abc"])
    assert len({shard.place for shard in shards}) == 3


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
