"""From shards to partitions: what is cached, what a lost or damaged cache changes (nothing), what is put aside."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from dfm.data import coded_rows, rows_aside
from dfm.data import reading as readings
from dfm.data.accounting import LabelMoments, RowAccount
from dfm.data.cache import prune_cache
from dfm.data.chunks import batches_aside, check_labels, hash_apart, hash_units
from dfm.data.coded_rows import CodedRows
from dfm.data.draw import Draw, Sampling, sampled
from dfm.data.encoding import encode_batch
from dfm.data.hashed_rows import HashedRows
from dfm.data.number_sketches import sketch_numbers
from dfm.data.parquet import Batch, Shard, Unit, describe_shard, read_unit
from dfm.data.partition import SparsePartition
from dfm.data.preparation import load_slices
from dfm.data.reading import Reading, fingerprint, kept_batches
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Schema, resolve
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import build_vocabulary, count_features, merge_counts
from dfm.errors import DataError
from dfm.storage.arrays import read_arrays, write_arrays
from tests.support.shards import write_shard

HASH_BITS = 12
COLUMNS = ["label", "w", "day", "C", "I", "L"]
UNIFORM = Schema(weight="w", time="day", categorical=["C"], numeric=["I"])
RAGGED = Schema(weight="w", time="day", categorical=["C"], numeric=["I"], transforms={"I": "raw"}, lists=["L"])
SPLIT = "2026-11-04"
RowKey = tuple[float, float, tuple[tuple[int, float], ...]]


def columns_of(first: int, n_rows: int) -> dict[str, Any]:
    """Rows that are all different: the weight is the row's number."""
    numbers = range(first, first + n_rows)
    return {
        "label": [n % 2 for n in numbers],
        "w": [float(n) for n in numbers],
        "day": [f"2026-11-{1 + n // 20:02d}" for n in numbers],
        "C": [f"c{n % 7}" for n in numbers],
        "I": [None if n % 5 == 0 else n for n in numbers],
        "L": [[f"l{n % 3}", "x"][: n % 3] for n in numbers],
    }


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """60 and 41 rows in row groups of 16."""
    paths = [
        write_shard(tmp_path / "data" / f"{name}.parquet", columns_of(first, n_rows), 16)
        for name, first, n_rows in (("a", 0, 60), ("b", 60, 41))
    ]
    return [describe_shard(path) for path in paths]


@pytest.fixture(params=["uniform", "coded", "ragged"])
def reading(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Rows of one entry a field side by side, and as codes, which so few rows are not worth; rows with lists."""
    if request.param == "coded":
        monkeypatch.setattr(coded_rows, "_WORTH", 0)
        monkeypatch.setattr(coded_rows, "_ROWS_OF_A_RUN", 0)
    schema = RAGGED if request.param == "ragged" else UNIFORM
    return Reading(resolve(schema, COLUMNS), HASH_BITS, "classification", cache=str(tmp_path / "cache"))


def whole(shards: Sequence[Shard]) -> list[Unit]:
    return [Unit(shard, 0, shard.n_rows) for shard in shards]


def keys(given: HashedRows | CodedRows) -> list[RowKey]:
    """Everything that is known of each row."""
    rows = given.hashed()
    values = rows.values if rows.values.size else np.ones(len(rows.indices), np.float32)
    flat = list(zip(rows.indices.tolist(), values.tolist(), strict=True))
    entries = [tuple(flat[rows.indptr[i] : rows.indptr[i + 1]]) for i in range(rows.n_rows)]
    return list(zip(rows.labels.tolist(), rows.weights.tolist(), entries, strict=True))


def partition_keys(partition: SparsePartition, ids: np.ndarray) -> list[tuple[float, float, dict[int, float]]]:
    """The same of a partition: its entries as a dictionary, since duplicates were summed."""
    implicit = int(partition.indptr[partition.n_implicit])
    values = [1.0] * implicit + partition.values.tolist()
    rows = []
    for i, (start, stop) in enumerate(zip(partition.indptr[:-1], partition.indptr[1:], strict=True)):
        features = ids[partition.features[partition.indices[start:stop]]].tolist()
        entries = dict(zip(features, values[start:stop], strict=True))
        rows.append((float(partition.labels[i]), float(partition.weights[i]), entries))
    return rows


def summed(key: RowKey) -> tuple[float, float, dict[int, float]]:
    sums: Counter[int] = Counter()
    for index, value in key[2]:
        sums[index] += value
    return key[0], key[1], dict(sums)


def assert_same_arrays(left: object, right: object) -> None:
    """Two records hold the same arrays, bit by bit."""
    for entry in dataclasses.fields(left):
        ours, theirs = getattr(left, entry.name), getattr(right, entry.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, entry.name
            np.testing.assert_array_equal(ours, theirs, err_msg=entry.name)
        elif dataclasses.is_dataclass(ours):
            assert_same_arrays(ours, theirs)
        else:
            assert ours == theirs, entry.name


def cache_files(reading: Reading, kind: str) -> list[Path]:
    return sorted(Path(reading.cache).glob(f"{kind}-*"))


# -------------------------------------------------------------------------------------------------- hashing ----


def test_without_a_seed_rows_keep_the_order_of_the_units(reading, shards):
    chunk = hash_units(reading, whole(shards), 1, None)
    assert chunk.rows.weights.tolist() == list(range(101))
    assert chunk.rows.labels.tolist() == [n % 2 for n in range(101)]
    labels = LabelMoments.of(chunk.rows.labels, chunk.rows.weights)
    entries = chunk.rows.hashed().entries
    weighing = chunk.rows.hashed().slice(1, 101).entries
    assert (entries.n_rows, entries) == (100, dataclasses.replace(weighing, n_counted=101)), "the first row weighs 0"
    assert dataclasses.replace(chunk.account, labels=labels, entries=entries) == RowAccount(
        101, 101, (), 50.0, labels, entries
    )
    assert dataclasses.astuple(chunk.account.entries) == pytest.approx(dataclasses.astuple(entries))  # in parts
    assert dataclasses.astuple(chunk.account.labels) == pytest.approx(dataclasses.astuple(labels))  # summed in parts
    part = hash_units(reading, [Unit(shards[1], 7, 20), Unit(shards[0], 30, 35)], 1, None)
    everything = keys(chunk.rows)
    assert keys(part.rows) == everything[67:80] + everything[30:35]


@pytest.mark.parametrize("n_slices", [1, 3, 8, 200])
def test_rows_are_dealt_into_slices_of_equal_size_and_none_is_lost(reading, shards, n_slices):
    chunk = hash_units(reading, whole(shards), n_slices, (5, 0))
    sizes = np.diff(chunk.offsets)
    assert len(sizes) == n_slices
    assert sizes.max() - sizes.min() <= 1
    slices = [chunk.rows.weights[start:stop].tolist() for start, stop in itertools.pairwise(chunk.offsets)]
    assert all(numbers == sorted(numbers) for numbers in slices), (
        "rows of a slice lie as in the file, to copy them fast"
    )
    assert Counter(keys(chunk.rows)) == Counter(keys(hash_units(reading, whole(shards), 1, None).rows))


def test_who_shares_a_slice_is_decided_by_the_seed_alone(reading, shards):
    def members(seed: tuple[int, ...], cache: str) -> list[set[float]]:
        chunk = hash_units(dataclasses.replace(reading, cache=reading.cache + cache), whole(shards), 4, seed)
        return [set(chunk.rows.weights[a:b].tolist()) for a, b in itertools.pairwise(chunk.offsets)]

    first = members((1, 2), "")
    assert members((1, 2), "-other") == first
    assert members((1, 3), "") != first
    assert all(max(members) - min(members) > 40 for members in first)


def test_a_chunk_counts_its_features(reading, shards):
    chunk = hash_units(reading, whole(shards), 4, (1, 2))
    slow = Counter(chunk.rows.hashed().indices.tolist())
    assert dict(zip(chunk.counts.ids.tolist(), chunk.counts.counts.tolist(), strict=True)) == slow


def test_units_without_rows_give_an_empty_chunk(reading, shards):
    chunk = hash_units(reading, [Unit(shards[0], 3, 3)], 2, (1,))
    assert (chunk.rows.n_rows, chunk.offsets.tolist(), chunk.account) == (0, [0, 0, 0], RowAccount())
    assert hash_units(reading, [], 1, None).rows.n_rows == 0


def test_bad_rows_are_accounted_for_or_stop_the_job(reading, tmp_path):
    columns = columns_of(0, 40)
    columns["label"][33] = 2
    columns["w"][20] = -1.0
    shard = describe_shard(write_shard(tmp_path / "bad.parquet", columns, 16))
    chunk = hash_units(dataclasses.replace(reading, on_bad_rows="skip"), [Unit(shard, 18, 40)], 2, None)
    assert (chunk.account.read, chunk.account.accepted, chunk.account.rejected) == (22, 20, 2)
    assert [(r.row_group, r.first_row, r.column) for r in chunk.account.rejections] == [(1, 4, "w"), (2, 1, "label")]
    assert chunk.rows.weights.tolist() == [float(n) for n in range(18, 40) if n not in (20, 33)]
    other = dataclasses.replace(reading, cache=str(tmp_path / "other"))
    with pytest.raises(DataError, match=r'bad\.parquet, row group 1, row 4: column .w.*on_bad_rows = "skip"'):
        hash_units(other, [Unit(shard, 18, 40)], 2, None)


def test_a_column_of_the_wrong_type_is_named_with_its_shard(tmp_path):
    columns = {"label": [0, 1], "C": [["a"], ["b"]], "I": [["1"], ["2"]]}
    unit = Unit(describe_shard(write_shard(tmp_path / "odd.parquet", columns)), 0, 2)
    for schema, column in (
        (Schema(categorical=["C"]), "C"),
        (Schema(numeric=["I"], transforms={"I": "quantile"}), "I"),
    ):
        reading = Reading(resolve(schema, list(columns)), HASH_BITS, "classification", cache=str(tmp_path / "cache"))
        with pytest.raises(DataError, match=rf"odd\.parquet: column '{column}' holds list"):
            hash_units(reading, [unit], 1, None)
    with pytest.raises(DataError, match=r"odd\.parquet: column 'I' holds list"):
        sketch_numbers(reading, [unit])


def labelled(tmp_path: Path, labels: Sequence[Any], task: str = "classification", **schema: Any) -> None:
    """Check the classes of rows with these labels."""
    path = write_shard(tmp_path / "labels.parquet", {"label": labels, "C": ["a"] * len(labels)})
    units = [Unit(describe_shard(path), 0, len(labels))]
    resolved = resolve(Schema(categorical=["C"], **schema), ["label", "C"])
    reading = Reading(resolved, HASH_BITS, task, on_bad_rows="skip", cache=str(tmp_path / "cache"))
    check_labels(hash_units(reading, units, 1, None).account, reading, units)


def test_labels_of_one_class_are_refused_with_what_was_looked_for_and_what_was_found(tmp_path):
    message = (
        r"all 6 rows to train on are negative: schema\.label_positive = \['click'\], and column 'label' "
        r"holds 'a', 'b', 'c', 'd', 'e'\. Name the positive labels in schema\.label_positive"
    )
    with pytest.raises(DataError, match=message):
        labelled(tmp_path / "1", list("abcdef"), label_positive=["click"])
    with pytest.raises(
        DataError, match="all 3 rows to train on are positive: 1 is positive, and column 'label' holds 1"
    ):
        labelled(tmp_path / "2", [1, 1, 1])


def test_labels_that_are_rounded_by_a_part_of_their_deviation_are_told(tmp_path, caplog):
    with caplog.at_level("WARNING", "dfm"):
        labelled(tmp_path / "1", [1.7e9 - 6_000, 1.7e9 + 6_000], task="regression")
    assert "labels around 1.7e+09 are kept to 128, and their deviation is 60" in caplog.text
    assert "subtract a constant from column 'label' first" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "dfm"):
        labelled(tmp_path / "2", [1.7e9 - 60_000, 1.7e9 + 60_000], task="regression")
        labelled(tmp_path / "3", [0.0, 1e-9], task="regression")
    assert not caplog.text


def test_labels_of_both_classes_numbers_to_predict_and_no_rows_at_all_pass(tmp_path):
    labelled(tmp_path / "1", [0, 0, 1])
    labelled(tmp_path / "2", ["a", "click"], label_positive=["click"])
    labelled(tmp_path / "3", [2.0, 2.0], task="regression")
    labelled(tmp_path / "4", [7, 7])


def test_only_the_columns_that_a_reading_needs_are_read(shards, tmp_path):
    schema = resolve(dataclasses.replace(UNIFORM, numeric=(), crosses=()), COLUMNS)
    reading = Reading(schema, HASH_BITS, "classification", cache=str(tmp_path))
    assert reading.columns == ["label", "w", "C"]
    assert dataclasses.replace(reading, time_until="2026").columns == ["label", "w", "day", "C"]


# ---------------------------------------------------------------------------------------------------- cache ----


def test_the_cache_gives_the_same_arrays_without_the_shards(reading, shards):
    fresh = hash_units(reading, whole(shards), 4, (1, 2))
    for shard in shards:
        Path(shard.url).unlink()
    assert_same_arrays(hash_units(reading, whole(shards), 4, (1, 2)), fresh)
    with pytest.raises(DataError, match="is gone"):
        hash_units(reading, whole(shards), 4, (1, 3))


CHANGES = {
    "hash bits": {"hash_bits": 13},
    "schema": {"schema": resolve(dataclasses.replace(UNIFORM, categorical=("C", "day"), time=""), COLUMNS)},
    "task": {"task": "regression"},
    "statistics": {"statistics": {"I": NumberStatistics(mean=1.0)}},
    "time_from": {"time_from": "2026-11-02"},
    "time_until": {"time_until": "2026-11-02"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_the_bytes_decides_the_cache_entry(reading, shards, change):
    assert dataclasses.replace(reading, **change).key() != reading.key()
    hash_units(reading, whole(shards), 1, None)
    hash_units(dataclasses.replace(reading, **change), whole(shards), 1, None)
    assert len(cache_files(reading, "chunk")) == 2


def move(path: Path) -> Path:
    return path.rename(path.with_name("c.parquet"))


def touch(path: Path) -> Path:
    os.utime(path, (1, path.stat().st_mtime + 100))
    return path


def rewrite(path: Path) -> Path:
    return Path(write_shard(path, columns_of(0, 60), 7))


@pytest.mark.parametrize("change", [move, touch, rewrite])
def test_a_shard_of_another_name_size_or_time_is_read_again(reading, shards, change):
    fresh = hash_units(reading, whole(shards[:1]), 1, None)
    changed = describe_shard(str(change(Path(shards[0].url))))
    assert_same_arrays(hash_units(reading, whole([changed]), 1, None).rows.hashed(), fresh.rows.hashed())
    assert len(cache_files(reading, "chunk")) == 2


@pytest.mark.parametrize("change", [move, touch, rewrite])
def test_a_worker_that_lost_its_partitions_does_not_make_them_again_from_other_rows(reading, shards, change):
    vocabulary, lookup = vocabulary_of(reading, shards)
    load_slices(reading, tasks_of(shards), 2, (3, 0), vocabulary, "key", lookup)
    changed = change(Path(shards[0].url))
    load_slices(reading, tasks_of(shards), 2, (3, 0), vocabulary, "key", lookup)
    for path in Path(reading.cache).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet is gone" if change is move else "a.parquet changed since"):
        load_slices(reading, tasks_of(shards), 2, (3, 0), vocabulary, "key", lookup)
    assert changed.exists()


def test_partitions_with_groups_are_others_in_the_cache(reading, shards):
    vocabulary, lookup = vocabulary_of(reading, shards)
    grouped = dataclasses.replace(reading, groups=tuple(range(len(reading.schema.fields))))
    for each, n_groups in ((reading, 0), (grouped, len(grouped.groups)), (reading, 0)):
        slices = load_slices(each, tasks_of(shards), 2, (3, 0), vocabulary, "key", lookup)
        assert [len(part.ends) for part in slices] == [n_groups * part.n_rows for part in slices]


def test_where_bad_rows_and_the_cache_go_does_not_change_the_key(reading):
    for change in ({"on_bad_rows": "skip"}, {"cache": "elsewhere"}, {"storage_options": {"key": "secret"}}):
        assert dataclasses.replace(reading, **change).key() == reading.key()
    assert "secret" not in repr(dataclasses.replace(reading, storage_options={"key": "secret"}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def garble_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:40] = b"?" * 32
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """One bit of the arrays; every offset and every index stays in range."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def copy_of(record: Any) -> Any:
    """A record whose arrays are no memory maps."""
    values = {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}
    copies = {name: v.copy() if isinstance(v, np.ndarray) else copy_of(v) for name, v in values.items()}
    return dataclasses.replace(record, **copies)


@pytest.mark.parametrize("damage", [cut, garble_header, empty, flip_a_bit, Path.unlink])
def test_a_damaged_or_lost_chunk_is_made_again(reading, shards, damage):
    fresh = hash_units(reading, whole(shards), 4, (1, 2))
    (path,) = cache_files(reading, "chunk")
    before = path.read_bytes()
    copy = copy_of(fresh.rows)
    path.rename(path.with_suffix(".old"))
    path.write_bytes(before)
    damage(path)
    assert_same_arrays(hash_units(reading, whole(shards), 4, (1, 2)).rows, copy)
    assert len(path.read_bytes()) == len(before)


# ----------------------------------------------------------------------------------------------- partitions ----


def vocabulary_of(reading: Reading, shards: Sequence[Shard]):
    rows = hash_units(reading, whole(shards), 1, None).rows.hashed()
    counts = count_features(rows.indices, rows.fields, len(reading.schema.fields), HASH_BITS)
    vocabulary = build_vocabulary(counts, [entry.name for entry in reading.schema.fields], HASH_BITS, 1, 3)
    return vocabulary, RowLookup(vocabulary)


def tasks_of(shards: Sequence[Shard]) -> list[list[Unit]]:
    return [[Unit(shards[0], 0, 50)], [Unit(shards[0], 50, 60), Unit(shards[1], 0, 41)]]


@pytest.mark.parametrize(("n_slices", "seed"), [(1, None), (1, (3, 0)), (5, (3, 0)), (64, (3, 0))])
def test_the_slices_of_a_replica_hold_every_row_once(reading, shards, n_slices, seed):
    vocabulary, lookup = vocabulary_of(reading, shards)
    slices = load_slices(reading, tasks_of(shards), n_slices, seed, vocabulary, "key", lookup)
    assert len(slices) == n_slices
    rows = [row for partition in slices for row in partition_keys(partition, vocabulary.ids)]
    expected = [summed(key) for key in keys(hash_units(reading, whole(shards), 1, None).rows)]
    assert sorted(rows, key=lambda row: row[1]) == expected
    sizes = [partition.n_rows for partition in slices]
    assert max(sizes) - min(sizes) <= len(tasks_of(shards))
    for partition in slices:
        partition.check()


def test_rows_of_a_slice_are_shuffled_across_tasks(reading, shards):
    vocabulary, lookup = vocabulary_of(reading, shards)
    first, *_ = load_slices(reading, tasks_of(shards), 2, (3, 0), vocabulary, "key", lookup)
    numbers = first.weights.astype(int).tolist()
    plain = numbers[: first.n_implicit] or numbers
    assert plain != sorted(plain)
    assert {number < 50 for number in plain[: len(plain) // 2]} == {True, False}


def test_partitions_come_from_the_cache_without_shards_and_chunks(reading, shards):
    vocabulary, lookup = vocabulary_of(reading, shards)
    fresh = load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup)
    for path in [*cache_files(reading, "chunk"), *(Path(shard.url) for shard in shards)]:
        path.unlink()
    again = load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup)
    for left, right in zip(fresh, again, strict=True):
        assert_same_arrays(left, right)
    with pytest.raises(DataError, match="is gone"):
        load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "another vocabulary", lookup)


def out_of_range(path: Path) -> None:
    """An index beyond the features, in a file that is otherwise sound."""
    partition = SparsePartition.open(path)
    indices = partition.indices.copy()
    indices[0] = len(partition.features)
    dataclasses.replace(partition, indices=indices).save(path)


def letter_for_digit(path: Path) -> None:
    """The count of implicit rows is no number any more; every length stays as it was."""
    data = path.read_bytes()
    at = data.index(b'"n_implicit":"') + len(b'"n_implicit":"')
    path.write_bytes(data[:at] + b"x" + data[at + 1 :])


@pytest.mark.parametrize("damage", [cut, garble_header, empty, flip_a_bit, out_of_range, letter_for_digit, Path.unlink])
def test_a_damaged_or_lost_partition_is_made_again_and_comes_out_the_same(reading, shards, damage, caplog):
    vocabulary, lookup = vocabulary_of(reading, shards)
    load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup)
    intact = {path: path.read_bytes() for path in cache_files(reading, "partition")}
    for path in list(intact)[:1]:
        damage(path)
    slices = load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup)
    for path in list(intact):
        original = path.with_name("intact")
        original.write_bytes(intact[path])
        assert_same_arrays(SparsePartition.open(path), SparsePartition.open(original))
    assert sum(partition.n_rows for partition in slices) == 101
    assert ("is made again: " in caplog.text) == (damage is not Path.unlink)


BYTES = {
    "uniform": "d657f182932cb7b4a2f6e46e5ab378ccd6230d90162cc5b8b059312f55db0654",
    "ragged": "dcb0e83de642683d456ac9a274f9e72bc3282136cb2fc5eab1716842c438a1fa",
}
"""Of all arrays of the partitions below, as they have been since caches have had their format."""


def test_partitions_are_the_bytes_that_they_have_been(reading, shards, request):
    units = [[unit] for unit in whole(shards)]
    kind = request.node.callspec.params["reading"]
    chunks = [hash_units(reading, of_task, 3, (1, 2, number)) for number, of_task in enumerate(units)]
    assert all(isinstance(chunk.rows, CodedRows) == (kind == "coded") for chunk in chunks)
    counts = [chunk.counts for chunk in chunks]
    vocabulary = build_vocabulary(
        merge_counts(counts, HASH_BITS), [f.name for f in reading.schema.fields], HASH_BITS, 2, 3
    )
    digest = hashlib.sha256()
    for partition in load_slices(reading, units, 3, (1, 2), vocabulary, "golden", RowLookup(vocabulary)):
        for entry in dataclasses.fields(partition):
            digest.update(np.asarray(getattr(partition, entry.name)).tobytes())
    assert digest.hexdigest() == BYTES["uniform" if kind == "coded" else kind]


def test_a_lost_cache_changes_nothing(reading, shards, tmp_path):
    vocabulary, lookup = vocabulary_of(reading, shards)
    here = load_slices(reading, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup)
    elsewhere = dataclasses.replace(reading, cache=str(tmp_path / "another worker"))
    for left, right in zip(
        here, load_slices(elsewhere, tasks_of(shards), 3, (3, 0), vocabulary, "key", lookup), strict=True
    ):
        assert_same_arrays(left, right)


def test_a_replica_without_rows_has_empty_slices(reading, shards):
    vocabulary, lookup = vocabulary_of(reading, shards)
    slices = load_slices(reading, [], 2, (3, 0), vocabulary, "key", lookup)
    assert [partition.n_rows for partition in slices] == [0, 0]


CACHED = (("chunk", "a"), ("partition", "b"), ("chunk", "c"))


def test_the_cache_drops_what_was_used_least_recently(tmp_path):
    new, middle, old = (tmp_path / f"{kind}-{digit * 32}.safetensors" for kind, digit in CACHED)
    for age, path in enumerate([new, middle, old]):
        write_arrays(path, {"rows": np.zeros(25, np.float32)})
        os.utime(path, (1000 - age, 1000 - age))
    size = new.stat().st_size
    assert prune_cache(str(tmp_path), 3 * size, 2000) == 0
    assert prune_cache(str(tmp_path), 3 * size - 1, 2000) == size
    assert sorted(tmp_path.iterdir()) == sorted([middle, new])
    assert prune_cache(str(tmp_path), 0, 1000) == size
    assert list(tmp_path.iterdir()) == [new]
    assert prune_cache(str(tmp_path / "nowhere"), 0, 2000) == 0


def test_what_killed_workers_left_half_written_goes_however_small_the_cache_is(tmp_path):
    kept = tmp_path / f"chunk-{'a' * 32}.safetensors"
    left, at_work = (tmp_path / f".chunk-{'b' * 32}.safetensors.{digit * 32}.part" for digit in "01")
    for path in (kept, left, at_work):
        write_arrays(path, {"rows": np.zeros(25, np.float32)})
    os.utime(left, (1000, 1000))
    os.utime(kept, (1000, 1000))
    assert prune_cache(str(tmp_path), 1 << 30, 2000) > 0
    assert sorted(tmp_path.iterdir()) == sorted([kept, at_work])


def test_files_without_checksums_are_made_again_and_told_to_be_of_an_earlier_version(reading, shards, caplog):
    hash_units(reading, whole(shards), 4, (1, 2))
    (path,) = cache_files(reading, "chunk")
    arrays, _ = read_arrays(path)
    save_file({name: array.copy() for name, array in arrays.items()}, path, metadata={"made_by": "dfm"})
    hash_units(reading, whole(shards), 4, (1, 2))
    assert f"{path} is made again: it has no checksums, as those of earlier versions" in caplog.text
    read_arrays(path)


def test_reading_from_the_cache_marks_it_as_used(reading, shards):
    hash_units(reading, whole(shards), 1, None)
    (path,) = cache_files(reading, "chunk")
    os.utime(path, (1000, 1000))
    hash_units(reading, whole(shards), 1, None)
    assert path.stat().st_mtime > 1000


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


# ------------------------------------------------------------------------------- rows that are held out ----

SPLITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "by lot": ({"draw": Draw(0.0, 0.3, False)}, {"draw": Draw(0.0, 0.3, True)}),
    "by group": ({"draw": Draw(0.0, 0.3, False, "C")}, {"draw": Draw(0.0, 0.3, True, "C")}),
    "in time": ({"time_until": SPLIT}, {"time_from": SPLIT}),
    "in time, with groups": ({"time_until": SPLIT, "group_column": "C"}, {"time_from": SPLIT, "group_column": "C"}),
    "by lot, few negatives": (
        {"draw": Draw(0.0, 0.3, False), "sampling": Sampling(0.5, 3)},
        {"draw": Draw(0.0, 0.3, True)},
    ),
    "all on one side": ({"time_until": "2027-01-01"}, {"time_from": "2027-01-01"}),
}


def both_of(reading: Reading, split: str) -> tuple[Reading, Reading]:
    training, held_out = SPLITS[split]
    return dataclasses.replace(reading, **training), dataclasses.replace(reading, **held_out)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_to_train_on_and_rows_held_out_come_from_one_reading_as_from_two(
    reading, shards, split, tmp_path, monkeypatch
):
    training, held_out = both_of(reading, split)
    units = [Unit(shards[0], 5, 60), Unit(shards[1], 0, 30)]
    apart = dataclasses.replace(training, cache=str(tmp_path / "apart"))
    expected = (
        hash_units(apart, units, 3, (1, 2)),
        hash_units(dataclasses.replace(held_out, cache=apart.cache), units, 1, None),
    )
    opened: list[Unit] = []
    monkeypatch.setattr(readings, "read_unit", lambda unit, *rest: opened.append(unit) or read_unit(unit, *rest))
    for found, known in zip(hash_apart(training, held_out, units, 3, (1, 2)), expected, strict=True):
        assert keys(found.rows) == keys(known.rows)
        assert_same_arrays(found.counts, known.counts)
        assert (found.offsets.tolist(), found.account) == (known.offsets.tolist(), known.account)
        assert_same_arrays(found.rows.hashed(), known.rows.hashed())
    assert opened == units
    assert expected[0].account.read + expected[1].account.read == 85
    again = hash_apart(training, held_out, units, 3, (1, 2))
    assert opened == units, "what is cached is not read again"
    for path in cache_files(reading, "chunk")[:1]:
        path.unlink()
    for found, known in zip(hash_apart(training, held_out, units, 3, (1, 2)), again, strict=True):
        assert_same_arrays(found, known)
    assert opened == units * 2, "nor is what is left of it"


def test_rows_held_out_are_not_counted(reading, shards):
    training, held_out = both_of(reading, "by lot")
    ours, theirs = hash_apart(training, held_out, whole(shards), 2, (1,))
    assert len(ours.counts.ids)
    assert theirs.rows.n_rows
    assert not len(theirs.counts.ids)


def test_a_bad_row_that_is_held_out_is_told_or_left_out(reading, shards, tmp_path):
    bad = {**columns_of(0, 40), "w": [-1.0 if n == 33 else float(n) for n in range(40)]}
    unit = Unit(describe_shard(write_shard(tmp_path / "bad" / "bad.parquet", bad, 16)), 0, 40)
    training, held_out = both_of(reading, "in time")
    held_out = dataclasses.replace(held_out, time_from="2026-11-02")
    training = dataclasses.replace(training, time_until="2026-11-02")
    with pytest.raises(DataError, match=r"bad\.parquet, row group 2, row 1"):
        hash_apart(training, held_out, [unit], 2, (1,))
    skipping = (dataclasses.replace(each, on_bad_rows="skip") for each in (training, held_out))
    ours, theirs = hash_apart(*skipping, [unit], 2, (1,))
    assert (ours.account.rejected, theirs.account.rejected, theirs.rows.n_rows) == (0, 1, 19)


# --------------------------------------------------------------------------------- rows that are put aside ----


def plain(batch: Batch) -> dict[str, list[Any]]:
    return {name: batch.data.column(name).to_pylist() for name in batch.data.schema.names}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_rows_are_put_aside_as_they_are_and_by_their_place(reading, shards, split, share):
    training, held_out = both_of(reading, split)
    units = [Unit(shards[0], 5, 60), Unit(shards[1], 0, 30)]
    held_out = dataclasses.replace(held_out, share_aside=share)
    hash_apart(training, held_out, units, 2, (1,))
    found = batches_aside(held_out, units)
    kept = [b for unit in units for b in kept_batches(held_out, unit, held_out.columns_aside) if b.data.num_rows]
    assert [batch.place for batch in found] == [batch.place for batch in kept]
    assert [batch.shard for batch in found] == [batch.shard for batch in kept]
    for ours, theirs in zip(found, kept, strict=True):
        drawn = dataclasses.replace(theirs, data=sampled(theirs.data, share, theirs.place))
        assert plain(ours) == {name: plain(drawn)[name] for name in held_out.columns_aside}
        assert ours.data.num_rows == (
            theirs.data.num_rows if share == 1 else max(1, round(share * theirs.data.num_rows))
        )
        assert set(ours.data.schema.names) == {"label", "w", *reading.schema.columns}
    encoded = [encode_batch(b.data, reading.schema, HASH_BITS, {}, "classification").rows for b in found]
    if share == 1 and encoded:
        rows = hash_units(held_out, units, 1, None).rows
        assert [key for each in encoded for key in keys(each)] == keys(rows)


def test_rows_that_were_put_aside_and_lost_or_damaged_are_read_again(reading, shards):
    training, held_out = both_of(reading, "by lot")
    held_out = dataclasses.replace(held_out, share_aside=1.0)
    hash_apart(training, held_out, whole(shards), 2, (1,))
    before = [plain(batch) for batch in batches_aside(held_out, whole(shards))]
    for path in cache_files(reading, "chunk"):
        content, arrays = bytearray(path.read_bytes()), read_arrays(path)[0]
        if "aside" in arrays:
            content[content.index(arrays["aside"].tobytes()) + arrays["aside"].nbytes // 2] ^= 1
        path.write_bytes(content)
    assert [plain(batch) for batch in batches_aside(held_out, whole(shards))] == before
    for path in cache_files(reading, "chunk"):
        path.unlink()
    assert [plain(batch) for batch in batches_aside(held_out, whole(shards))] == before
    assert batches_aside(dataclasses.replace(held_out, share_aside=0.0), whole(shards)) is None


def test_rows_too_large_to_be_put_aside_are_not(reading, shards, monkeypatch):
    units, held_out = whole(shards), dataclasses.replace(reading, share_aside=1.0)
    n_bytes = hash_units(held_out, units, 1, None).aside.nbytes
    for most, is_kept in ((n_bytes, True), (n_bytes // 2, False), (1, False)):
        monkeypatch.setattr(rows_aside, "MOST_BYTES", most)
        for path in cache_files(reading, "chunk"):
            path.unlink()
        found = batches_aside(held_out, units)
        assert (found is not None) == is_kept
        assert hash_units(held_out, units, 1, None).aside.nbytes == (n_bytes if is_kept else 0)
    assert batches_aside(held_out, [Unit(shards[0], 3, 3)]) == [], "of no rows there is nothing to keep"


def test_columns_of_any_type_are_put_aside(tmp_path):
    """Dictionaries that differ from batch to batch, nulls, lists, fields of structs, another type in another shard."""
    columns = {
        "label": [0, 1] * 20,
        "w": [float(n) for n in range(40)],
        "C": pa.array([None if n % 7 == 0 else f"c{n}" for n in range(40)]).dictionary_encode(),
        "B": pa.array([b"\xff" + bytes([n]) for n in range(40)]),
        "S": [{"a": n, "b": None} for n in range(40)],
        "T": pa.array([n * 10**6 for n in range(40)], pa.timestamp("us")),
        "L": [[f"l{n}"] * (n % 3) for n in range(40)],
    }
    other = {**columns, "C": list(range(40))}
    paths = [write_shard(tmp_path / f"{n}.parquet", each, 16) for n, each in enumerate((columns, other))]
    units = whole([describe_shard(path) for path in paths])
    names = ["label", "w", "C", "B", "S.a", "S.b", "T", "L"]
    schema = resolve(Schema(weight="w", categorical=["C", "B", "S.a", "T"], lists=["L"]), names)
    reading = Reading(schema, HASH_BITS, "classification", cache=str(tmp_path / "cache"), share_aside=1.0)
    rows = hash_units(reading, units, 1, None).rows
    found = batches_aside(reading, units)
    encoded = [encode_batch(b.data, schema, HASH_BITS, {}, "classification").rows for b in found]
    assert [key for each in encoded for key in keys(each)] == keys(rows)
    assert sum(batch.data.num_rows for batch in found) == 80
