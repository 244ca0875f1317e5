"""Parquet files found and read: every row once and in its place, every bad file named."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data import parquet
from dfm.data.duplicates import check_distinct, check_named_once
from dfm.data.guess import guess
from dfm.data.parquet import (
    Batch,
    Shard,
    Unit,
    _check_dictionaries,
    arrow_schema,
    describe_shard,
    find_shards,
    read_unit,
)
from dfm.errors import DataError, SettingsError
from tests.support.shards import write_shard


def found(folder: Path, *paths: str, **options: Any) -> list[str]:
    """URLs of the shards that the paths below a folder name, relative to it."""
    return [os.path.relpath(s.url, folder) for s in find_shards([str(folder / path) for path in paths], options)]


def number_shard(path: Path, n_rows: int, row_group_size: int = 10) -> Shard:
    """A shard with the column `n` = 0, 1, 2, … and a text column `t`."""
    columns = {
        "n": pa.array(range(n_rows), pa.int64()),
        "t": pa.array([f"t{i % 3}" for i in range(n_rows)], pa.string()),
    }
    return describe_shard(write_shard(path, columns, row_group_size))


def numbers(batches: list[Batch]) -> list[int]:
    return [number for batch in batches for number in batch.data.column("n").to_pylist()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders as Spark, Delta Lake and people leave them."""
    for name in [
        "day=1/a.parquet",
        "day=1/b.parquet",
        "day=2/a.pq",
        "day=10/a.parq",
        "day=10/_metadata",
        "day=10/_common.parquet",
        "day=10/.a.parquet",
        "_temporary/0/a.parquet",
        "_delta_log/1.checkpoint.parquet",
        ".staging/a.parquet",
        "_kind=x/a.parquet",
    ]:
        number_shard(tmp_path / name, 3)
    (tmp_path / "day=1" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "day=1" / "notes.txt").write_text("not data")
    return tmp_path


# -------------------------------------------------------------------------------------------------- finding ----

DAYS = ["_kind=x/a.parquet", "day=1/a.parquet", "day=1/b.parquet", "day=10/a.parq", "day=2/a.pq"]


def test_a_folder_gives_the_parquet_files_below_it_but_no_hidden_ones(tree):
    assert found(tree, ".") == DAYS
    assert found(tree, "day=1") == DAYS[1:3]


def test_globs_name_files_and_folders_between(tree):
    assert found(tree, "day=*/*.parquet") == DAYS[1:3]
    assert found(tree, "**/*.p*q*") == DAYS
    assert found(tree, "day=[12]/a*") == ["day=1/a.parquet", "day=2/a.pq"]
    assert found(tree, "day=1?/*") == ["day=10/a.parq"]


def test_globs_that_match_folders_search_below_them(tree):
    assert found(tree, "day=1*") == DAYS[1:4]
    assert found(tree, "day=*/") == DAYS[1:]
    assert found(tree, "*") == DAYS
    assert found(tree.parent, f"{tree.name[:-1]}*/day=2") == [f"{tree.name}/day=2/a.pq"]


def test_a_file_named_in_full_is_read_even_where_a_search_would_skip_it(tree):
    assert found(tree, "day=10/_common.parquet") == ["day=10/_common.parquet"]
    hidden = tree / ".staging"
    assert found(hidden, ".") == ["a.parquet"]


def test_shards_come_once_and_in_order_however_often_they_are_named(tree):
    assert found(tree, "day=2", "day=1/b.parquet", "day=1/*.parquet", ".") == DAYS


def test_local_urls_relative_paths_and_paths_are_one(tree, monkeypatch):
    monkeypatch.chdir(tree)
    urls = {
        shard.url
        for path in ("day=2", f"file://{tree}/day=2", f"{tree}/day=2", "day=1/../day=2/*")
        for shard in find_shards([path])
    }
    assert urls == {f"{tree}/day=2/a.pq"}


def test_shards_on_another_filesystem_keep_their_protocol(tree):
    store = fsspec.filesystem("memory")
    store.pipe_file("/clicks/day=1/a.parquet", (tree / "day=1" / "a.parquet").read_bytes())
    for path in ("memory://clicks", "memory://clicks/*/*.parquet", "memory://clicks/day=1/a.parquet"):
        (shard,) = find_shards([path])
        assert shard.url.startswith("memory://")
        assert shard.partition == (("day", "1"),)
        assert numbers(list(read_unit(Unit(shard, 0, 3), ["n", "t"]))) == [0, 1, 2]
    store.rm("/clicks", recursive=True)


@pytest.mark.parametrize("path", ["nothing/*.parquet", "nothing", "empty", "day=1/_SUCCES*", "*.parquet"])
def test_a_path_that_names_no_shard_is_an_error_even_beside_others_that_do(tree, path):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=r"no Parquet file at .*check the path"):
        found(tree, "day=1", path)


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(SettingsError, match=r"nope://clicks cannot be opened: .*nope.*install what the protocol needs"):
        find_shards(["nope://clicks"])


def test_empty_shards_are_fine_beside_others_and_an_error_alone(tmp_path):
    number_shard(tmp_path / "a.parquet", 0)
    with pytest.raises(DataError, match=r"no rows in 1 shards at .*every shard is empty"):
        found(tmp_path, ".")
    number_shard(tmp_path / "b.parquet", 4)
    shards = find_shards([str(tmp_path)])
    assert [shard.n_rows for shard in shards] == [0, 4]
    assert list(read_unit(Unit(shards[0], 0, 0), ["n"])) == []


def test_a_shard_knows_its_size_time_and_row_groups(tmp_path):
    shard = number_shard(tmp_path / "a.parquet", 25)
    status = (tmp_path / "a.parquet").stat()
    assert (shard.row_groups, shard.n_rows, shard.size) == ((10, 10, 5), 25, status.st_size)
    os.utime(tmp_path / "a.parquet", (1, status.st_mtime + 100))
    assert describe_shard(shard.url).modified != shard.modified


def test_a_shard_of_a_filesystem_without_times_changes_with_what_is_known_of_it(tmp_path, monkeypatch):
    path = Path(number_shard(tmp_path / "a.parquet", 25).url)
    store = fsspec.filesystem("memory")
    store.pipe_file("/timeless/a.parquet", path.read_bytes())
    known: dict[str, Any] = {"name": "/timeless/a.parquet", "size": path.stat().st_size, "type": "file", "md5": "1"}
    monkeypatch.setattr(type(store), "info", lambda *_, **__: known)
    first, again = describe_shard("memory://timeless/a.parquet"), describe_shard("memory://timeless/a.parquet")
    known["md5"] = "2"
    assert first.modified == again.modified != describe_shard("memory://timeless/a.parquet").modified
    assert first.modified


# ---------------------------------------------------------------------------------------------- bad files ----


@pytest.mark.parametrize("content", [b"", b"PAR1", b"label,C1\n1,a\n" * 20, b"PAR1" + b"\x00" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as Parquet .* replace the file or leave it out"):
        found(tmp_path, ".")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.csv", "a.csv --to FOLDER makes of it"),
        ("my a.csv", "my a.csv' --to FOLDER makes of it"),
        ("a.CSV.gz", "dfm reads Parquet, which dfm convert "),
        ("b.svm", "b.svm --to FOLDER makes of it"),
        ("b.jsonl", "pyarrow.json.read_json('b.jsonl'), 'b.parquet'"),
    ],
)
def test_who_has_text_learns_how_it_becomes_parquet(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"label,C1\n1,a\n" * 20)
    with pytest.raises(DataError, match=re.escape(remedy)):
        found(tmp_path, name)
    with pytest.raises(DataError, match="dfm reads Parquet, which"):
        found(tmp_path, ".")


def test_who_has_folders_of_text_learns_to_convert_all_of_them(tmp_path):
    (tmp_path / "my logs" / "day=1").mkdir(parents=True)
    (tmp_path / "my logs" / "day=1" / "a.csv").write_text("label,C1\n1,a\n")
    (tmp_path / "my logs" / "day=1" / "b.csv").write_text("label,C1\n1,a\n")
    for path in ("my logs", "my logs/day=*"):
        with pytest.raises(DataError, match=re.escape(f"dfm convert '{tmp_path}/{path}' --to FOLDER makes of it")):
            found(tmp_path, path)


def test_a_truncated_file_is_named(tmp_path):
    path = Path(number_shard(tmp_path / "cut.parquet", 1000).url)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as Parquet"):
        found(tmp_path, ".")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_pages_are_named_with_their_row_group(tmp_path, compression):
    columns = {"n": pa.array(range(40), pa.int64())}
    path = tmp_path / "damaged.parquet"
    shard = describe_shard(write_shard(path, columns, 20, compression=compression))
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    shard = describe_shard(shard.url)
    assert numbers(list(read_unit(Unit(shard, 0, 20), ["n"]))) == list(range(20))
    with pytest.raises(DataError, match=r"damaged\.parquet, row group 1, cannot be read as Parquet"):
        list(read_unit(Unit(shard, 0, 40), ["n"]))


def test_a_file_that_changed_or_went_away_since_it_was_found_is_named(tmp_path):
    shard = number_shard(tmp_path / "a.parquet", 30)
    os.utime(tmp_path / "a.parquet", (1, 1_700_000_000))
    with pytest.raises(
        DataError, match=r"a\.parquet changed since the job began: .* of 2023-11-14 22:13:20.*restore it"
    ):
        list(read_unit(Unit(shard, 0, 30), ["n"]))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"a\.parquet is gone"):
        list(read_unit(Unit(shard, 0, 30), ["n"]))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    shard = number_shard(tmp_path / "a.parquet", 30)
    batches = read_unit(Unit(shard, 0, 30), ["n"])
    next(batches)
    number_shard(tmp_path / "a.parquet", 30, row_group_size=5)
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(batches)


def test_a_file_whose_identity_was_forged_has_the_rows_of_its_footer_or_an_error(tmp_path, monkeypatch):
    shard = number_shard(tmp_path / "a.parquet", 30)
    monkeypatch.setattr(parquet, "check_unchanged", lambda *_: None)
    number_shard(tmp_path / "a.parquet", 30, row_group_size=5)
    with pytest.raises(DataError, match=r"row group 0, has 5 rows.* 10; the file changed"):
        list(read_unit(Unit(shard, 0, 30), ["n"]))
    number_shard(tmp_path / "a.parquet", 20)
    with pytest.raises(DataError, match="row group 2, cannot be read"):
        list(read_unit(Unit(shard, 0, 30), ["n"]))


def test_a_file_cut_short_while_it_is_read_is_an_error_and_kills_nobody(tmp_path):
    """A memory-mapped file would end the process with SIGBUS."""
    columns = {"n": pa.array(range(300_000), pa.int64())}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 100_000, compression="none"))
    program = (
        "import sys, os; from dfm.data.parquet import *; from dfm.errors import DataError\n"
        "shard = describe_shard(sys.argv[1]); batches = read_unit(Unit(shard, 0, shard.n_rows), ['n']); next(batches)\n"
        "os.truncate(sys.argv[1], 4096)\n"
        "try: list(batches); print('read on')\n"
        "except DataError as error: print('DataError', error)"
    )
    done = subprocess.run([sys.executable, "-c", program, shard.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.startswith("DataError ")
    assert "a.parquet" in done.stdout


def test_a_changed_page_is_found_by_its_checksum_where_the_file_has_them(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"n": pa.array(range(1000), pa.int64())}
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    write_shard(path, columns, 1000, **options)
    data = bytearray(path.read_bytes())
    at = data.index((500).to_bytes(8, "little"))
    data[at] ^= 1
    path.write_bytes(data)
    shard = describe_shard(str(path))
    with pytest.raises(DataError, match=r"a\.parquet, row group 0, cannot be read as Parquet .*(CRC|crc)"):
        list(read_unit(Unit(shard, 0, 1000), ["n"]))


def test_a_missing_column_is_named_with_the_shard_and_the_columns_it_has(tmp_path):
    shard = number_shard(tmp_path / "a.parquet", 3)
    with pytest.raises(
        DataError, match=r"a\.parquet has no column 'price': it has n, t\. Give it that column, with nulls"
    ):
        list(read_unit(Unit(shard, 0, 3), ["n", "price"]))
    renamed = describe_shard(write_shard(tmp_path / "b.parquet", {"Price": pa.array([1])}, 1))
    with pytest.raises(
        DataError, match=r"b\.parquet has no column 'price': it has Price\. Did you mean \"Price\"\? Give it"
    ):
        list(read_unit(Unit(renamed, 0, 1), ["price"]))


# ------------------------------------------------------------------------------------------- duplicate shards ----


def same_shape(path: Path, first: int) -> Shard:
    """Files of one size and one footer: numbers of eight bytes, neither compressed nor described."""
    columns = {"n": pa.array(range(first, first + 10_000), pa.int64())}
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    return describe_shard(write_shard(path, columns, 10_000, **options))


def test_copies_and_links_of_a_shard_are_refused_with_both_names(tmp_path):
    shard = same_shape(tmp_path / "a.parquet", 0)
    other = same_shape(tmp_path / "b.parquet", 50_000)
    assert other.size == shard.size
    check_distinct([shard, other])
    shutil.copy(shard.url, tmp_path / "copy.parquet")
    (tmp_path / "link.parquet").symlink_to(shard.url)
    check_named_once([shard, other, describe_shard(str(tmp_path / "copy.parquet"))])
    with pytest.raises(DataError, match=r"link\.parquet is the same file as .*a\.parquet"):
        check_named_once([shard, other, describe_shard(str(tmp_path / "link.parquet"))])
    for name in ("copy.parquet", "link.parquet"):
        again = describe_shard(str(tmp_path / name))
        with pytest.raises(
            DataError, match=rf"{name} is the same file as .*a\.parquet, or a copy.* 10000 rows .*twice"
        ):
            check_distinct([shard, other, again])


def test_a_shard_to_train_and_to_validate_on_is_refused(tmp_path):
    shard = same_shape(tmp_path / "a.parquet", 0)
    with pytest.raises(DataError, match=r"a\.parquet is among the shards to train on and among those to validate on"):
        check_distinct([shard, shard])


def batch_of_a_stream(path: Path, rows: list[str]) -> Shard:
    return describe_shard(write_shard(path, {"user": pa.array(rows)}, 10_000))


@pytest.mark.parametrize(
    "rows",
    [["a"], ["a", "b", "c"], [f"user {n}" for n in range(31)], ["a"] * 5_000, [*["a"] * 2_000, "b"]],
    ids=["one row", "three rows", "31 rows", "one value", "hardly two values"],
)
def test_equal_batches_of_a_stream_are_no_copies_but_one_file_under_two_names_is(tmp_path, rows):
    first, second, third = (batch_of_a_stream(tmp_path / f"part-{n}.parquet", rows) for n in range(3))
    check_distinct([first, second, third])
    (tmp_path / "link.parquet").symlink_to(second.url)
    (tmp_path / "hard.parquet").hardlink_to(third.url)
    for again, name in ((second, "link"), (third, "hard")):
        link = describe_shard(str(tmp_path / f"{name}.parquet"))
        for shards in ([first, second, third, link], [link, first, second, third]):
            with pytest.raises(DataError, match=r"twice; leave it out") as told:
                check_distinct(shards)
            assert {os.path.basename(again.url), f"{name}.parquet"} <= {
                *re.findall(r"[\w-]+\.parquet", str(told.value))
            }
    with pytest.raises(DataError, match="to train on and among those to validate on"):
        check_distinct([first, second, first])


def test_equal_files_of_rows_that_differ_are_copies(tmp_path):
    for name, rows in (("users", [f"user {n}" for n in range(32)]), ("coins", ["a", "b", "b", "a"] * 20)):
        shards = [batch_of_a_stream(tmp_path / f"{name}-{n}.parquet", rows) for n in range(2)]
        with pytest.raises(DataError, match="a copy of it"):
            check_distinct(shards)


def test_empty_shards_may_be_alike(tmp_path):
    check_distinct([number_shard(tmp_path / f"{name}.parquet", 0) for name in "ab"])


# -------------------------------------------------------------------------------------------------- reading ----


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """Row groups of 7, 1, 40 and 12 rows."""
    path = tmp_path_factory.mktemp("shards") / "uneven.parquet"
    with pq.ParquetWriter(path, pa.schema([("n", pa.int64()), ("t", pa.string())])) as writer:
        for start, stop in ((0, 7), (7, 8), (8, 48), (48, 60)):
            texts = [f"t{n}" for n in range(start, stop)]
            writer.write_table(pa.table({"n": pa.array(range(start, stop), pa.int64()), "t": texts}))
    return describe_shard(str(path))


@given(st.integers(0, 60), st.integers(0, 60))
def test_any_range_of_rows_comes_in_order_and_knows_its_place(uneven, start, stop):
    firsts = (0, 7, 8, 48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "BATCH_ROWS", 9)
        batches = list(read_unit(Unit(uneven, start, stop), ["t", "n"]))
    assert numbers(batches) == list(range(start, stop))
    for batch in batches:
        places = [firsts[batch.row_group] + batch.place_of(row) for row in range(batch.data.num_rows)]
        assert batch.data.column("n").to_pylist() == places
        assert batch.data.column("t").to_pylist() == [f"t{n}" for n in places]


def test_only_the_columns_asked_for_are_read(uneven):
    (batch, *_) = read_unit(Unit(uneven, 0, 60), ["n"])
    assert batch.data.schema.names == ["n"]


def test_text_arrives_as_dictionaries_so_that_distinct_values_are_hashed_once(tmp_path):
    texts = [f"v{i % 3}" for i in range(50)]
    kinds = {"s": pa.string(), "l": pa.large_string(), "b": pa.binary(), "d": pa.dictionary(pa.int32(), pa.string())}
    columns = {name: pa.array(texts).cast(kind) for name, kind in kinds.items() if name != "d"}
    columns["d"] = pa.array(texts).dictionary_encode()
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 100))
    (batch,) = read_unit(Unit(shard, 0, 50), list(kinds))
    for name in kinds:
        column = batch.data.column(name)
        assert pa.types.is_dictionary(column.type), name
        assert len(column.dictionary) == 3
        assert [str(text).strip("b'") for text in column.to_pylist()] == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_text_arrives_as_it_is_from_the_row_group_on_after_it_was_asked_for(tmp_path, kind):
    texts = [None if i % 7 == 0 else f"v{i % 5}" for i in range(90)]
    columns = {"s": pa.array(texts).cast(kind), "t": pa.array(texts).cast(kind)}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 30))
    as_text: set[str] = set()
    batches = []
    for batch in read_unit(Unit(shard, 10, 80), ["s", "t"], as_text=as_text):
        batches.append(batch)
        as_text.add("s")
    are_dictionaries = [[pa.types.is_dictionary(column.type) for column in batch.data.columns] for batch in batches]
    assert are_dictionaries == [[True, True], [False, True], [False, True]]
    assert [(batch.row_group, batch.first_row, batch.data.num_rows) for batch in batches] == [
        (0, 10, 20),
        (1, 0, 30),
        (2, 0, 20),
    ]
    for name in ("s", "t"):
        found = [text for batch in batches for text in batch.data.column(name).cast(pa.string()).to_pylist()]
        assert found == texts[10:80]


# --------------------------------------------------------------------------------------- columns of the path ----


@pytest.mark.parametrize(
    ("code", "is_there", "damaged"), [(2, True, False), (3, True, True), (-1, True, True), (3, False, False)]
)
def test_a_code_outside_of_its_dictionary_is_damage_where_a_value_is_there(code, is_there, damaged):
    codes = np.array([0, 1, code], np.int32)
    bits = np.array([0b011 | is_there << 2], np.uint8)
    indices = pa.Array.from_buffers(pa.int32(), 3, [pa.py_buffer(bits), pa.py_buffer(codes)])
    array = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b", "c"]), safe=False)
    batch = pa.RecordBatch.from_arrays([array], names=["C"])
    with pytest.raises(pa.ArrowInvalid, match="outside its dictionary") if damaged else contextlib.nullcontext():
        _check_dictionaries(batch)


def test_hive_folders_are_columns_of_text(tmp_path):
    shard = number_shard(tmp_path / "day=2026-11-20" / "site=a" / "x.parquet", 15)
    assert shard.partition == (("day", "2026-11-20"), ("site", "a"))
    assert arrow_schema(shard).names == ["n", "t", "day", "site"]
    batches = list(read_unit(Unit(shard, 5, 15), ["site", "n", "day"]))
    assert numbers(batches) == list(range(5, 15))
    for name, value in (("day", "2026-11-20"), ("site", "a")):
        assert [text for batch in batches for text in batch.data.column(name).to_pylist()] == [value] * 10


def test_a_column_of_the_path_can_be_read_alone(tmp_path):
    shard = number_shard(tmp_path / "day=3" / "x.parquet", 15)
    texts = [text for batch in read_unit(Unit(shard, 5, 12), ["day"]) for text in batch.data.column("day").to_pylist()]
    assert texts == ["3"] * 7


def test_hive_escapes_are_undone_and_its_null_folder_is_null(tmp_path):
    shard = number_shard(tmp_path / "at=10%3A00" / "site=__HIVE_DEFAULT_PARTITION__" / "x.parquet", 2)
    (batch,) = read_unit(Unit(shard, 0, 2), ["at", "site"])
    assert batch.data.to_pydict() == {"at": ["10:00"] * 2, "site": [None] * 2}


def test_a_stored_column_beats_one_of_the_path(tmp_path):
    columns = {"day": ["stored", "too"], "n": [1, 2]}
    shard = describe_shard(write_shard(tmp_path / "day=path" / "x.parquet", columns))
    (batch,) = read_unit(Unit(shard, 0, 2), ["day"])
    assert batch.data.column("day").to_pylist() == ["stored", "too"]
    assert arrow_schema(shard).names == ["day", "n"]


@pytest.mark.parametrize("year", [1, 1600, 1970, 2300, 9999])
def test_moments_of_96_bits_are_those_of_64(tmp_path, year):
    """Spark writes them so by default, and a contract without an end ends in the year 9999."""
    moments = pa.array([datetime.datetime(year, 12, 31, 23, 59, 59, 123456), None], pa.timestamp("us"))
    there = []
    for name, is_of_96 in (("a", True), ("b", False)):
        pq.write_table(pa.table({"t": moments}), tmp_path / name, use_deprecated_int96_timestamps=is_of_96)
        shard = describe_shard(str(tmp_path / name))
        there += [batch.data.column("t") for batch in read_unit(Unit(shard, 0, 2), ["t"])]
    assert there[0] == there[1] == moments


def not_utf_8() -> pa.Array:
    """Text as old engines wrote it, and no reader may refuse: values are hashed by their bytes."""
    raw = pa.array([b"\xff%04d" % number for number in range(200)])
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def test_a_copy_is_told_also_where_its_values_are_none_of_python(tmp_path):
    beyond = pa.array(range(10**18, 10**18 + 200), pa.int64()).cast(pa.timestamp("ms"))
    for column in (not_utf_8(), beyond):
        shards = [describe_shard(write_shard(tmp_path / f"{n}.parquet", {"c": column}, 200)) for n in range(2)]
        with pytest.raises(DataError, match="or a copy"):
            check_distinct(shards)
        assert "[schema]" in guess(str(tmp_path / "0.parquet"))


def test_shards_of_one_value_that_is_no_utf_8_are_no_copies(tmp_path):
    raw = pa.array([b"caf\xe9"] * 1000)
    place = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    columns = {"place": place, "raw": raw, "click": pa.array([0] * 1000)}
    check_distinct([describe_shard(write_shard(tmp_path / f"{n}.parquet", columns, 1000)) for n in range(2)])
