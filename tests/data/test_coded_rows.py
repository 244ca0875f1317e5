"""Rows column by column, as codes of tables: the same rows, counts and partitions as rows side by side, bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.data import chunks, coded_rows, encoding, known_tables, parquet
from dfm.data.bits import trailing_zeros
from dfm.data.building import Room, build_partition
from dfm.data.chunks import Chunk, hash_units
from dfm.data.coded_rows import CodedRows, lighter
from dfm.data.encoding import are_coded
from dfm.data.hashed_rows import HashedRows
from dfm.data.hashing import dictionary_codes
from dfm.data.known_tables import KnownTables
from dfm.data.parquet import Unit, describe_shard
from dfm.data.preparation import load_slices
from dfm.data.reading import Reading
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Schema, resolve
from dfm.data.vocabulary import build_vocabulary, merge_counts
from dfm.distributed.preparation_tasks import sights_of_shard
from dfm.errors import DataError
from dfm.model.drift import Watcher, seen_bits
from dfm.storage.arrays import read_arrays, write_arrays
from tests.data.test_preparation import assert_same_arrays
from tests.support.shards import write_shard

N_ROWS, ROW_GROUP, BATCH = 600, 200, 64
FAR = 100_000
"""Integers so far apart have no codes."""
PLAIN = Schema(weight="w", categorical=["a", "b", "n"], numeric=["x", "y"])
CROSSED = Schema(categorical=["a", "b"], numeric=["x"], crosses=[["a", "b"], ["b", "x"]])
WIDE = Schema(categorical=[f"c{j}" for j in range(70)])
SCHEMAS = {"plain": PLAIN, "crossed": CROSSED, "more fields than a word has bits": WIDE}


def columns_of(seed: int, n_rows: int = N_ROWS) -> dict[str, Any]:
    """Text of few and of many values with gaps, whole numbers as categories, counts, and numbers of all kinds."""
    random = np.random.default_rng(seed)
    frequent = np.minimum(random.geometric(0.3, n_rows), 9)
    numbers = np.where(random.random(n_rows) < 0.1, random.normal(0, 1e6, n_rows), random.integers(-3, 40, n_rows))
    columns: dict[str, Any] = {
        "label": random.integers(0, 2, n_rows),
        "w": random.random(n_rows).round(1),
        "a": [None if value == 9 else f"a{value}" for value in frequent],
        "b": [f"b{value}" for value in random.integers(0, n_rows, n_rows)],
        "n": random.integers(0, 30, n_rows) * FAR,
        "x": pa.array([None if value == 2 else value for value in random.integers(0, 20000, n_rows) // 7]),
        "y": numbers,
        "g": [f"g{value}" for value in random.integers(0, 20, n_rows)],
    }
    return columns | {f"c{j}": [f"{value}" for value in random.integers(0, 3 + j, n_rows)] for j in range(70)}


@pytest.fixture(autouse=True)
def small_batches_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", BATCH)
    monkeypatch.setattr(coded_rows, "_WORTH", 0)
    monkeypatch.setattr(coded_rows, "_ROWS_OF_A_RUN", 0)


def units_of(tmp_path: Path, columns: Sequence[dict[str, Any]]) -> list[Unit]:
    paths = [write_shard(tmp_path / f"{i}.parquet", each, ROW_GROUP) for i, each in enumerate(columns)]
    return [Unit(shard, 0, shard.n_rows) for shard in map(describe_shard, paths)]


def reading_of(tmp_path: Path, schema: Schema, hash_bits: int = 12, **more: Any) -> Reading:
    resolved = resolve(schema, list(columns_of(0, 1)))
    return Reading(resolved, hash_bits, "classification", cache=str(tmp_path / "cache"), **more)


def both_ways(make: Callable[[Reading], Any], reading: Reading) -> tuple[Any, Any]:
    """What is made with codes and without, each with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "are_coded", lambda schema: False)
        plain = make(dataclasses.replace(reading, cache=reading.cache + "-plain"))
    return make(reading), plain


def assert_same_chunks(coded: Chunk, plain: Chunk) -> None:
    assert isinstance(coded.rows, CodedRows)
    assert isinstance(plain.rows, HashedRows)
    assert_same_arrays(coded.rows.hashed(), plain.rows)
    assert_same_arrays(coded.counts, plain.counts)
    np.testing.assert_array_equal(coded.offsets, plain.offsets)
    assert coded.account == plain.account


def partitions(
    reading: Reading, units: Sequence[Unit], n_slices: int, min_count: int, groups: tuple[int, ...] = ()
) -> list[Any]:
    """Partitions of one replica whose tasks are the units, each alone."""
    names = [entry.name for entry in reading.schema.fields]
    found = [hash_units(reading, [unit], n_slices, (7, number)) for number, unit in enumerate(units)]
    is_coded = chunks.are_coded is are_coded and reading.hash_bits <= 26 and chunks.MOST_CODES > 0
    assert all(isinstance(chunk.rows, CodedRows) == is_coded for chunk in found if chunk.rows.n_rows)
    counts = merge_counts([chunk.counts for chunk in found], reading.hash_bits)
    vocabulary = build_vocabulary(counts, names, reading.hash_bits, min_count, 3)
    grouped = dataclasses.replace(reading, groups=groups)
    return load_slices(grouped, [[u] for u in units], n_slices, (7,), vocabulary, "key", RowLookup(vocabulary))


# -------------------------------------------------------------------------------------- as rows side by side ----


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize(("n_slices", "seed"), [(1, None), (1, (3,)), (5, None), (5, (3,)), (700, (3,))])
def test_chunks_hold_the_rows_and_counts_of_rows_side_by_side(tmp_path, schema, n_slices, seed):
    units = units_of(tmp_path, [columns_of(1), columns_of(2, 90)])
    parts = [Unit(units[0].shard, 30, 450), units[1]]
    assert_same_chunks(*both_ways(lambda r: hash_units(r, parts, n_slices, seed), reading_of(tmp_path, schema)))


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("hash_bits", [4, 9, 22, 27], ids="{} bits".format)
@pytest.mark.parametrize("min_count", [1, 3])
def test_partitions_are_those_of_rows_side_by_side(tmp_path, schema, hash_bits, min_count):
    """Few bits: features of several fields, that stand twice in a row."""
    units = units_of(tmp_path, [columns_of(1), columns_of(2)])
    reading = reading_of(tmp_path, schema, hash_bits)
    coded, plain = both_ways(lambda r: partitions(r, units, 3, min_count), reading)
    for ours, theirs in zip(coded, plain, strict=True):
        assert_same_arrays(ours, theirs)
    if hash_bits == 4:
        assert any(part.n_implicit < part.n_rows for part in coded)


def test_entries_that_the_vocabulary_lacks_are_dropped_as_from_rows_side_by_side(tmp_path):
    units = units_of(tmp_path, [columns_of(1), columns_of(2)])

    def made(reading: Reading) -> list[Any]:
        counts = hash_units(reading, units[:1], 2, (7, 0)).counts
        few = dataclasses.replace(counts, counts=np.where(counts.ids % 3 == 0, counts.counts, 0))
        vocabulary = build_vocabulary(few, [entry.name for entry in reading.schema.fields], reading.hash_bits, 1, 1)
        kept = vocabulary.counts > 0
        n_kept = int(np.count_nonzero(kept))
        parts = {name: getattr(vocabulary, name)[kept] for name in ("ids", "counts", "fields")}
        smaller = dataclasses.replace(vocabulary, **parts, n_factored=n_kept)
        return load_slices(reading, [[unit] for unit in units], 2, (7,), smaller, "key", RowLookup(smaller))

    coded, plain = both_ways(made, reading_of(tmp_path, PLAIN))
    for ours, theirs in zip(coded, plain, strict=True):
        assert_same_arrays(ours, theirs)
        assert int(ours.indptr[-1]) < ours.n_rows * 5


def test_bad_rows_samples_and_groups_are_as_of_rows_side_by_side(tmp_path):
    columns = columns_of(1)
    columns["label"][[3, 70, 599]] = 2
    columns["y"][5] = np.inf
    units = units_of(tmp_path, [columns, columns_of(2)])
    reading = reading_of(tmp_path, PLAIN, on_bad_rows="skip", group_column="g")
    assert_same_chunks(*both_ways(lambda r: hash_units(r, units, 4, (3, 1)), reading))
    grouped = both_ways(lambda r: partitions(r, units, 3, 2, (0, 1, 1, 0, 2)), reading)
    for ours, theirs in zip(*grouped, strict=True):
        assert_same_arrays(ours, theirs)


def test_shards_that_hold_a_column_as_text_and_as_numbers_go_together(tmp_path):
    """Codes of one, none of the other: the field has none in any."""
    columns = columns_of(1)
    columns["a"] = np.arange(N_ROWS) % 7 * FAR
    units = units_of(tmp_path, [columns, columns_of(2)])
    reading = reading_of(tmp_path, PLAIN)
    chunks = both_ways(lambda r: hash_units(r, units, 4, (3, 1)), reading)
    assert_same_chunks(*chunks)
    assert chunks[0].rows.plain.tolist() == [0, 2]
    for ours, theirs in zip(*both_ways(lambda r: partitions(r, units, 3, 2), reading), strict=True):
        assert_same_arrays(ours, theirs)


def test_rows_that_have_few_codes_lie_side_by_side(tmp_path, monkeypatch):
    """Where most columns have more values than there are codes."""
    units = units_of(tmp_path, [columns_of(1)])
    reading = reading_of(tmp_path, PLAIN)
    monkeypatch.setattr(encoding, "MOST_CODES", 130)
    monkeypatch.setattr(known_tables, "MOST_CODES", 130)
    ours, theirs = both_ways(lambda r: hash_units(r, units, 4, (3, 1)), reading)
    assert isinstance(ours.rows, HashedRows)
    assert_same_arrays(ours.rows, theirs.rows)
    assert_same_arrays(ours.counts, theirs.counts)
    monkeypatch.setattr(encoding, "MOST_CODES", 1 << 12)
    monkeypatch.setattr(known_tables, "MOST_CODES", 1 << 12)
    assert isinstance(hash_units(reading, units, 4, (3, 2)).rows, CodedRows)


TEXTS = ["", "a", "b", None]


def test_few_rows_with_large_tables_lie_side_by_side(tmp_path, monkeypatch):
    """Buckets of two columns are some 4,000 codes in each of three row groups; entries are 600 a column."""
    units = units_of(tmp_path, [columns_of(1)])
    reading = reading_of(tmp_path, PLAIN)
    rows = hash_units(reading, units, 1, (3, 7)).rows
    assert isinstance(rows, CodedRows)
    worth = len(rows.codes) / len(rows.tables.indices)
    for factor, kind in ((0.99, CodedRows), (1.01, HashedRows)):
        monkeypatch.setattr(coded_rows, "_WORTH", factor * worth)
        assert isinstance(hash_units(reading, units, 1, (3, int(factor))).rows, kind)
        assert isinstance(lighter([rows])[0], kind)
    assert_same_arrays(lighter([rows])[0], rows.hashed())
    assert lighter([]) == []


def test_rows_that_come_in_short_runs_lie_side_by_side(tmp_path, monkeypatch):
    """600 rows of three row groups, in two slices."""
    monkeypatch.setattr(coded_rows, "_ROWS_OF_A_RUN", 100)
    units = units_of(tmp_path, [columns_of(1)])
    reading = reading_of(tmp_path, PLAIN)
    assert isinstance(hash_units(reading, units, 2, (3, 1)).rows, CodedRows)
    assert isinstance(hash_units(reading, units, 3, (3, 1)).rows, HashedRows)


def test_rows_are_the_same_after_a_journey(tmp_path):
    units = units_of(tmp_path, [columns_of(1)])
    chunk = hash_units(reading_of(tmp_path, PLAIN), units, 3, (1,))
    ends = chunk.offsets.tolist()
    parts = [chunk.rows.slice(start, stop) for start, stop in itertools.pairwise(ends)]
    arrived = pickle.loads(pickle.dumps(parts))
    for ours, theirs in zip(arrived, parts, strict=True):
        assert_same_arrays(ours.hashed(), theirs.hashed())
        assert ours.tables is arrived[0].tables, "looked up once here, too"


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_text_that_is_read_as_it_is_gives_the_rows_of_dictionaries(tmp_path, schema, monkeypatch):
    """As text is read whose dictionaries have too many values for codes: here of all columns, and of none."""
    units = units_of(tmp_path, [columns_of(1), columns_of(2)])
    found = []
    for most in (0, 1 << 16):
        chunks._read_as_text.cache_clear()
        monkeypatch.setattr(chunks, "MOST_CODES", most)
        reading = reading_of(tmp_path / str(most), schema)
        found.append((hash_units(reading, units, 4, (3, 1)), partitions(reading, units, 3, 2)))
        names = {entry.name for entry in reading.schema.fields if entry.kind == "categorical"} - {"n"}
        assert chunks._read_as_text(reading.key()) == (names if most == 0 else set())
    chunks._read_as_text.cache_clear()
    (ours, our_partitions), (theirs, their_partitions) = found
    assert_same_arrays(ours.rows.hashed(), theirs.rows.hashed())
    assert_same_arrays(ours.counts, theirs.counts)
    for mine, other in zip(our_partitions, their_partitions, strict=True):
        assert_same_arrays(mine, other)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b", None]), st.sampled_from([0, 1, 7, -1, 1 << 40, None])), max_size=40
    ),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_any_rows_come_out_as_they_went_in(tmp_path_factory, rows, n_slices, row_group):
    folder = tmp_path_factory.mktemp("any")
    table = pa.table(
        {
            "label": pa.array([n % 2 for n in range(len(rows))], pa.int8()),
            "C": pa.array([text for text, _ in rows], pa.string()),
            "I": pa.array([number for _, number in rows], pa.int64()),
        }
    )
    shard = describe_shard(write_shard(folder / "a.parquet", table, row_group))
    schema = resolve(Schema(categorical=["C"], numeric=["I"]), table.column_names)
    reading = Reading(schema, 10, "classification", cache=str(folder / "cache"))
    coded, plain = both_ways(lambda r: hash_units(r, [Unit(shard, 0, shard.n_rows)], n_slices, (1, 2)), reading)
    assert_same_arrays(coded.rows.hashed(), plain.rows)
    assert_same_arrays(coded.counts, plain.counts)


def test_what_drift_compares_is_counted_as_of_rows_side_by_side(tmp_path):
    units = units_of(tmp_path, [columns_of(1), columns_of(2)])
    reading = reading_of(tmp_path, PLAIN)
    coded, plain = both_ways(lambda r: hash_units(r, units, 4, (3, 1)), reading)
    few = hash_units(reading, [Unit(units[0].shard, 0, 100)], 1, (3, 1)).counts
    vocabulary = build_vocabulary(few, [entry.name for entry in reading.schema.fields], 12, 2, 3)
    vocabulary = dataclasses.replace(vocabulary, seen=seen_bits(few, 12))
    watcher = Watcher.of(vocabulary, reading.schema, reading.statistics, RowLookup(vocabulary))
    ours, theirs = watcher.sights(coded.rows).counts, watcher.sights(plain.rows).counts
    np.testing.assert_array_equal(ours, theirs)
    assert ours.sum() == coded.rows.n_rows * 5


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_codes_of_a_dictionary_are_the_places_of_its_values(kind):
    places = np.array([2, 0, 1, 1, 2, 2, 0] * 10)
    for validity in (np.ones(70, np.bool_), np.arange(70) % 3 > 0):
        numbers = pa.array(places, getattr(pa, kind)(), mask=~validity)
        array = pa.DictionaryArray.from_arrays(numbers, pa.array(["x", "y", "z"]))
        for each, first in ((array, 0), (array.slice(5), 5)):
            codes, amounts = dictionary_codes(each)
            expected = np.where(validity, places, 3)[first:]
            assert codes.dtype == np.uint16
            assert codes.tolist() == expected.tolist()
            assert amounts.tolist() == np.bincount(expected, minlength=4).tolist()


@pytest.mark.parametrize("code", [3, -1, 1 << 16, (1 << 16) + 1])
def test_a_code_outside_its_dictionary_is_refused(code):
    numbers = pa.array([0, 1, code, None], pa.int32())
    array = pa.DictionaryArray.from_arrays(numbers, pa.array(["x", "y", "z"]), safe=False)
    for each in (array, array.slice(0, 3)):
        with pytest.raises(DataError, match="a code of a dictionary is out of range"):
            dictionary_codes(each)


# --------------------------------------------------------------------------------------------------- layout ----


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (PLAIN, True),
        (CROSSED, True),
        (dataclasses.replace(PLAIN, lists=["l"]), False),
        (dataclasses.replace(PLAIN, lists=["l"], crosses=[["a", "l"]]), False),
        (dataclasses.replace(PLAIN, transforms={"x": "raw"}), False),
        (dataclasses.replace(PLAIN, transforms={"x": "standardize"}), False),
    ],
)
def test_only_rows_of_one_entry_of_value_1_a_field_are_coded(schema, expected):
    assert are_coded(resolve(schema, [*columns_of(0, 1), "l"])) == expected


def test_batches_of_a_row_group_share_their_tables(tmp_path):
    units = units_of(tmp_path, [columns_of(1)])
    rows = hash_units(reading_of(tmp_path, PLAIN), units, 3, (1,)).rows
    assert isinstance(rows, CodedRows)
    assert len(rows.blocks) == 3 * (N_ROWS // ROW_GROUP), "a run for each slice and row group, not for each batch"
    assert len(rows.tables.starts) - 1 == len(rows.coded) * (N_ROWS // ROW_GROUP)
    assert rows.codes.dtype == np.uint16


def test_a_table_is_made_again_where_the_dictionary_is_another():
    known, made = KnownTables(), []

    def make() -> np.ndarray:
        made.append(np.zeros(1, np.uint32))
        return made[-1]

    def table(column: str, dictionary: pa.Array) -> np.ndarray | None:
        codes = pa.array([0], pa.int32())
        return known.table(column, pa.DictionaryArray.from_arrays(codes, dictionary), make)

    texts = [pa.array(list(values)) for values in ("ab", "ab", "ac", "abc", "abc")]
    tables = [table("column", each) for each in (*texts, texts[4].slice(1), texts[0])]
    assert [next(i for i, each in enumerate(made) if each is found) for found in tables] == [0, 0, 1, 2, 2, 3, 4]
    assert table("other column", texts[0]) is made[5]
    letters = pa.array(list("abcd"))
    assert table("parts", letters.slice(0, 2)) is not table("parts", letters.slice(2, 2))
    whole, bits = pa.array(["a", "b"]), pa.py_buffer(b"\x01")
    gaps = pa.Array.from_buffers(whole.type, 2, [bits, *whole.buffers()[1:]])
    assert table("gaps", whole) is not table("gaps", gaps)
    assert table("gaps", gaps) is not table("gaps", whole)
    assert table("few rows", pa.array([f"{i}" for i in range(8)])) is not None
    assert table("few rows", pa.array([f"{i}" for i in range(9)])) is None


def test_slices_are_whole_runs(tmp_path):
    units = units_of(tmp_path, [columns_of(1)])
    chunk = hash_units(reading_of(tmp_path, PLAIN), units, 3, (1,))
    assert isinstance(chunk.rows, CodedRows)
    first, second = int(chunk.offsets[1]), int(chunk.offsets[2])
    whole = chunk.rows.hashed()
    assert_same_arrays(chunk.rows.slice(first, second).hashed(), whole.slice(first, second))
    assert chunk.rows.slice(first, first).n_rows == 0
    for start, stop in ((first + 1, second), (first, second - 1), (first, chunk.rows.n_rows + 1)):
        with pytest.raises(DataError, match="no whole runs"):
            chunk.rows.slice(start, stop)


def a_negative_code(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.codes"] = arrays["rows.codes"].astype(np.int64)
    arrays["rows.codes"][3] = -(10**9)


def a_negative_index(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.tables.indices"] = arrays["rows.tables.indices"].astype(np.int64)
    arrays["rows.tables.indices"][3] = -5


def fields_that_are_fractions(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.coded"] = arrays["rows.coded"].astype(np.float64)


def a_table_too_many(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.tables.starts"] = np.append(arrays["rows.tables.starts"], arrays["rows.tables.starts"][-1:])


def a_slice_too_many(arrays: dict[str, np.ndarray]) -> None:
    arrays["offsets"] = np.append(arrays["offsets"], arrays["offsets"][-1:])


def a_slice_that_ends_late(arrays: dict[str, np.ndarray]) -> None:
    arrays["offsets"][1] += 1


def a_slice_beyond_the_rows(arrays: dict[str, np.ndarray]) -> None:
    arrays["offsets"][-1] += 1


def a_field_too_many(arrays: dict[str, np.ndarray]) -> None:
    n_rows = len(arrays["rows.labels"])
    arrays["rows.plain"] = np.append(arrays["rows.plain"], np.uint16(5))
    arrays["rows.indices"] = np.append(arrays["rows.indices"], np.zeros(n_rows, np.uint32))


def code_too_large(arrays: dict[str, np.ndarray]) -> None:
    n_first = int(arrays["rows.starts"][1])
    arrays["rows.codes"][n_first - 1] = arrays["rows.tables.starts"][1]


def table_index_too_large(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.tables.indices"][4] = 1 << 12


def index_too_large(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.indices"][4] = 1 << 12


def block_that_is_not_there(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.blocks"][1] = 3


def run_that_ends_late(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.starts"][-1] += 1


def field_that_comes_twice(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.coded"][0] = arrays["rows.coded"][1]


def table_that_begins_late(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows.tables.starts"][1] = arrays["rows.tables.starts"][2] + 1


@pytest.mark.parametrize(
    "damage",
    [
        a_negative_code,
        a_negative_index,
        fields_that_are_fractions,
        a_table_too_many,
        a_slice_too_many,
        a_slice_that_ends_late,
        a_slice_beyond_the_rows,
        a_field_too_many,
        code_too_large,
        table_index_too_large,
        index_too_large,
        block_that_is_not_there,
        run_that_ends_late,
        field_that_comes_twice,
        table_that_begins_late,
    ],
)
def test_codes_out_of_range_are_refused_before_memory_is_read_by_them(tmp_path, damage):
    """In a file whose checksums are sound."""
    units = units_of(tmp_path, [columns_of(1)])
    reading = reading_of(tmp_path, PLAIN)
    chunk = hash_units(reading, units, 2, (7, 0))
    vocabulary = build_vocabulary(chunk.counts, list("abnxy"), 12, 1, 1)
    (path,) = Path(reading.cache).glob("chunk-*")
    arrays = {name: array.copy() for name, array in read_arrays(path)[0].items()}
    damage(arrays)
    write_arrays(path, arrays)
    damaged = (
        "no whole runs" if damage is a_slice_that_ends_late else "hashed rows in .* are damaged; delete that folder"
    )
    with pytest.raises(DataError, match=damaged):
        load_slices(reading, [units], 2, (7,), vocabulary, "key", RowLookup(vocabulary))
    if damage is not a_slice_that_ends_late:
        with pytest.raises(DataError, match=damaged):
            sights_of_shard(reading, units, 2, (7, 0), vocabulary, "key")


def test_a_task_without_rows_and_one_side_by_side_go_with_coded_ones(tmp_path, monkeypatch):
    units = units_of(tmp_path, [columns_of(1), columns_of(2)])
    tasks = [units[0], Unit(units[0].shard, 3, 3), units[1]]
    reading = reading_of(tmp_path, PLAIN)
    asked: list[int] = []
    hashed = CodedRows.hashed
    monkeypatch.setattr(CodedRows, "hashed", lambda self: [asked.append(self.n_rows), hashed(self)][1])
    coded, plain = both_ways(lambda r: partitions(r, tasks, 3, 2), reading)
    assert not asked, "an empty task leaves the others as they are"
    for ours, theirs in zip(coded, plain, strict=True):
        assert_same_arrays(ours, theirs)
    chunks = [hash_units(reading, [unit], 1, (7, number)) for number, unit in enumerate(units)]
    vocabulary = build_vocabulary(chunks[0].counts, list("abnxy"), 12, 1, 1)
    lookup = RowLookup(vocabulary)
    side_by_side, order = [chunk.rows.hashed() for chunk in chunks], np.random.default_rng(3).permutation(2 * N_ROWS)
    expected = build_partition(side_by_side, vocabulary, lookup, order)
    asked.clear()
    room = Room()
    for mixed in ([chunks[0].rows, side_by_side[1]], [side_by_side[0], chunks[1].rows]):
        assert_same_arrays(build_partition(mixed, vocabulary, lookup, order), expected)
        first = build_partition(mixed, vocabulary, lookup, order[::-1].copy(), room)
        assert_same_arrays(build_partition(mixed, vocabulary, lookup, order, room), expected)
        assert np.shares_memory(first.indices, room.of(1)), "each is built where the one before was"
    assert not asked, "nor do those that lie side by side"
    valued = dataclasses.replace(side_by_side[1], values=np.full(len(side_by_side[1].indices), 2.0, np.float32))
    both = build_partition([chunks[0].rows, valued], vocabulary, lookup)
    assert_same_arrays(both, build_partition([side_by_side[0], valued], vocabulary, lookup))
    arrived = pickle.loads(pickle.dumps(lookup))
    assert_same_arrays(
        build_partition(chunks[0].rows, vocabulary, arrived), build_partition(chunks[0].rows, vocabulary, lookup)
    )


def test_few_rows_of_a_batch_do_not_bring_its_whole_dictionary(tmp_path):
    """But where a batch with more rows has brought it, they do: the last batch of 70 rows has six."""
    columns = {"label": [0, 1] * 300, "a": [f"v{i % 300}" for i in range(600)]}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 600))
    reading = Reading(resolve(Schema(categorical=["a"]), list(columns)), 12, "classification", cache=str(tmp_path))
    for stop, kind in ((30, HashedRows), (60, CodedRows), (70, CodedRows)):
        assert isinstance(hash_units(reading, [Unit(shard, 0, stop)], 1, None).rows, kind)


def test_a_batch_of_which_no_row_is_kept_leaves_the_others_coded(tmp_path):
    columns = {"label": [0, 1] * 100, "a": [f"v{i % 20}" for i in range(200)], "t": list(range(200))}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 200))
    schema = resolve(Schema(categorical=["a"], time="t"), list(columns))
    reading = Reading(schema, 12, "classification", cache=str(tmp_path), time_from=str(2 * BATCH))
    rows = hash_units(reading, [Unit(shard, 0, 200)], 1, None).rows
    assert isinstance(rows, CodedRows)
    assert rows.n_rows == 200 - 2 * BATCH


def test_rows_of_codes_are_looked_up_once_for_all_slices(tmp_path, monkeypatch):
    units = units_of(tmp_path, [columns_of(1)])
    asked: list[int] = []
    rows = RowLookup.rows

    def counted(self: RowLookup, indices: np.ndarray, fields: np.ndarray, out: Any = None) -> np.ndarray:
        asked.append(len(indices))
        return rows(self, indices, fields, out)

    monkeypatch.setattr(RowLookup, "rows", counted)
    schema = dataclasses.replace(PLAIN, categorical=("a", "b"))
    reading = reading_of(tmp_path, schema)
    partitions(reading, units, 4, 1)
    chunk = hash_units(reading, units, 4, (7, 0))
    assert isinstance(chunk.rows, CodedRows)
    assert sum(asked) == len(chunk.rows.tables.indices)


@pytest.mark.parametrize("word", [1, 2, 3, 12, 1 << 40, 1 << 63, (1 << 64) - 1, 0])
def test_zeros_below_the_lowest_bit(word):
    assert trailing_zeros_of(np.uint64(word)) == (64 if not word else (word & -word).bit_length() - 1)


def trailing_zeros_of(word: np.uint64) -> int:
    import numba

    return int(numba.njit(lambda given: trailing_zeros(given))(word))
