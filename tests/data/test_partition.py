"""Partitions against dictionaries: every row keeps its features with their summed values, its label and its weight."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from dfm.data import scoring_rows
from dfm.data.building import build_partition
from dfm.data.hashed_rows import HashedRows, concatenate_rows
from dfm.data.partition import SparsePartition, by_group
from dfm.data.row_lookup import RowLookup
from dfm.data.scoring_rows import scoring_partition
from dfm.data.vocabulary import ABSENT, Vocabulary, build_vocabulary, count_features
from dfm.errors import DataError
from dfm.storage.arrays import read_only

HASH_BITS = 4
COLUMNS = ["C1", "C2", "I1"]
Row = dict[int, float]
"""Row of the parameter table: summed value."""
VALUES = [1.0, 0.25, -2.5, 3.0]
"""Sums of these are exact in float32."""


def hashed(rows: Sequence[Sequence[tuple[int, int, float]]], weights: bool = False, values: bool = True) -> HashedRows:
    """Rows of (field, index, value); row i has label i and weight i / 2."""
    flat = [entry for row in rows for entry in row]
    arrays = (
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([index for _, index, _ in flat], np.uint32),
        np.array([field for field, _, _ in flat], np.uint16),
        np.array([value for _, _, value in flat] if values else [], np.float32),
        np.arange(len(rows), dtype=np.float32),
        np.arange(len(rows), dtype=np.float32) / 2 if weights else np.zeros(0, np.float32),
    )
    return HashedRows(*map(read_only, arrays))


ENTRY = st.tuples(st.integers(0, 2), st.integers(0, 2**HASH_BITS - 1), st.sampled_from(VALUES))


@st.composite
def samples(draw: DrawFn) -> tuple[HashedRows, Vocabulary]:
    """Rows, and the vocabulary of some of them and of others: either may hold features that the other lacks."""
    rows = draw(st.lists(st.lists(ENTRY, max_size=6), max_size=12))
    sample = hashed(rows, draw(st.booleans()), draw(st.booleans()))
    half = rows[: len(rows) // 2] if draw(st.booleans()) else rows
    seen = hashed(half + draw(st.lists(st.lists(ENTRY, max_size=9))))
    counts = count_features(seen.indices, seen.fields, len(COLUMNS), HASH_BITS)
    return sample, build_vocabulary(counts, COLUMNS, HASH_BITS, draw(st.integers(1, 3)), draw(st.integers(1, 4)))


def slow_rows(rows: HashedRows, vocabulary: Vocabulary) -> list[Row]:
    """Each row as a dictionary, by the definition."""
    table_rows = {index: row for row, index in enumerate(vocabulary.ids.tolist())}
    result = []
    for start, stop in itertools.pairwise(rows.indptr):
        sums: Row = defaultdict(float)
        for i in range(start, stop):
            row = table_rows.get(int(rows.indices[i]), int(vocabulary.rare[rows.fields[i]]))
            if row >= 0:
                sums[row] += float(rows.values[i]) if rows.values.size else 1.0
        result.append(dict(sums))
    return result


def partition_rows(partition: SparsePartition, features: np.ndarray) -> list[Row]:
    """Each row as a dictionary; fails where an index stands in a row twice."""
    explicit = int(partition.indptr[partition.n_implicit])
    values = [1.0] * explicit + partition.values.tolist()
    assert len(values) == len(partition.indices)
    result = []
    for start, stop in itertools.pairwise(partition.indptr):
        local = partition.indices[start:stop]
        assert len(set(local.tolist())) == len(local)
        result.append(dict(zip(features[local].tolist(), values[start:stop], strict=True)))
    return result


# ------------------------------------------------------------------------------------------------- training ----


@given(samples(), st.randoms(use_true_random=False))
def test_every_row_keeps_its_features_with_summed_values_its_label_and_its_weight(sample, random):
    rows, vocabulary = sample
    order = list(range(rows.n_rows))
    random.shuffle(order)
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary), np.array(order, np.int64))
    partition.check()
    expected = slow_rows(rows, vocabulary)
    numbers = partition.labels.astype(int).tolist()
    assert sorted(numbers) == sorted(order)
    assert partition_rows(partition, partition.features) == [expected[number] for number in numbers]
    assert partition.weights.tolist() == ([number / 2 for number in numbers] if rows.weights.size else [])


@given(samples(), st.sampled_from([(0, 1, 0), (1, 0, 1), (2, 0, 1)]))
def test_entries_come_group_by_group_each_in_its_order_and_rows_stay_what_they_are(sample, groups):
    rows, vocabulary = sample
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary))
    ordered = by_group(partition, groups)
    ordered.check()
    assert partition_rows(ordered, ordered.features) == partition_rows(partition, partition.features)
    group_of = np.array(groups)[partition.fields] if len(partition.fields) else np.zeros(0, int)
    ends = ordered.ends.reshape(partition.n_rows, 1 + max(groups))
    for row, (start, stop) in enumerate(itertools.pairwise(partition.indptr)):
        before, after = partition.indices[start:stop], ordered.indices[start:stop]
        assert after.tolist() == before[np.argsort(group_of[before], kind="stable")].tolist()
        assert ends[row].tolist() == np.cumsum(np.bincount(group_of[before], minlength=1 + max(groups))).tolist()
    assert by_group(partition, ()) is partition


@given(samples(), st.randoms(use_true_random=False))
def test_rows_that_store_no_values_come_first_and_both_kinds_keep_the_order_asked_for(sample, random):
    rows, vocabulary = sample
    order = list(range(rows.n_rows))
    random.shuffle(order)
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary), np.array(order, np.int64))
    numbers = partition.labels.astype(int).tolist()
    implicit, explicit = numbers[: partition.n_implicit], numbers[partition.n_implicit :]
    assert implicit == [number for number in order if number in implicit]
    assert explicit == [number for number in order if number in explicit]
    if rows.values.size:
        assert implicit == []
    else:
        sums = slow_rows(rows, vocabulary)
        assert sorted(explicit) == [i for i, row in enumerate(sums) if any(value != 1.0 for value in row.values())]


@given(samples())
def test_a_partition_lists_the_features_it_touches_most_frequent_first(sample):
    rows, vocabulary = sample
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary))
    assert partition.features.tolist() == sorted({row for rows in slow_rows(rows, vocabulary) for row in rows})
    assert partition.n_factored == sum(row < vocabulary.n_factored for row in partition.features.tolist())
    assert partition.indices.dtype == partition.features.dtype == np.uint32


def test_duplicates_in_a_row_become_one_entry_with_their_sum():
    rows = hashed([[(0, 5, 1.0), (1, 5, 1.0), (2, 6, 1.0)], [(0, 5, 1.0), (1, 6, 1.0)]], values=False)
    vocabulary = build_vocabulary(count_features(rows.indices, rows.fields, 3, HASH_BITS), COLUMNS, HASH_BITS, 1, 1)
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary))
    assert (partition.n_implicit, partition.labels.tolist()) == (1, [1.0, 0.0])
    assert partition.indptr.tolist() == [0, 2, 4]
    assert partition.indices.tolist() == [0, 1, 0, 1]
    assert partition.values.tolist() == [2.0, 1.0]


def test_two_unseen_categories_of_a_row_share_the_bucket_of_their_field():
    rows = hashed([[(0, 5, 0.25), (0, 6, 3.0), (1, 7, 1.0)]])
    counts = count_features(np.array([7, 7, 7], np.uint32), np.ones(3, np.uint16), 3, HASH_BITS)
    vocabulary = build_vocabulary(counts, COLUMNS, HASH_BITS, 2, 1)
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary))
    known = vocabulary.ids.tolist().index(7)
    assert partition_rows(partition, partition.features) == [{int(vocabulary.rare[0]): 3.25, known: 1.0}]


def test_a_partition_of_no_rows_is_sound():
    rows = hashed([])
    vocabulary = build_vocabulary(count_features(rows.indices, rows.fields, 3, HASH_BITS), COLUMNS, HASH_BITS, 1, 1)
    partition = build_partition(rows, vocabulary, RowLookup(vocabulary))
    partition.check()
    assert (partition.n_rows, partition.indptr.tolist(), len(partition.features)) == (0, [0], 0)


# -------------------------------------------------------------------------------------------------- scoring ----


@given(samples())
def test_scoring_keeps_the_order_of_rows_and_uses_rows_of_the_whole_table(sample):
    rows, vocabulary = sample
    partition = scoring_partition(rows, RowLookup(vocabulary))
    everything = np.arange(vocabulary.n_features, dtype=np.uint32)
    assert partition_rows(partition, everything) == slow_rows(rows, vocabulary)
    assert partition.labels.tolist() == rows.labels.tolist()
    assert partition.weights.tolist() == rows.weights.tolist()
    assert partition.n_implicit in (0, rows.n_rows)


@given(samples())
def test_features_stand_beside_their_fields(sample):
    rows, vocabulary = sample
    lookup = RowLookup(vocabulary)
    trained = build_partition(rows, vocabulary, lookup)
    assert trained.fields.tolist() == vocabulary.fields[trained.features].tolist()
    assert scoring_partition(rows, lookup).fields.tolist() == vocabulary.fields.tolist()


@pytest.mark.parametrize("n_entries", [255, 256, 257, 600])
@pytest.mark.parametrize("values", [False, True])
def test_long_rows_are_summed_like_short_ones(n_entries, values):
    random = np.random.default_rng(n_entries)
    long = [(0, int(index), VALUES[index % 4] if values else 1.0) for index in random.integers(0, 500, n_entries)]
    distinct = [(0, index, 1.0) for index in range(n_entries)]
    for sample in ([long, distinct, long[:3]], [distinct]):
        rows = hashed(sample, values=values)
        vocabulary = build_vocabulary(count_features(rows.indices, rows.fields, 1, 10), ["L"], 10, 1, 1)
        lookup = RowLookup(vocabulary)
        expected = slow_rows(rows, vocabulary)
        assert partition_rows(scoring_partition(rows, lookup), np.arange(vocabulary.n_features)) == expected
        trained = build_partition(rows, vocabulary, lookup)
        order = trained.labels.astype(int)
        assert partition_rows(trained, trained.features) == [expected[number] for number in order]


def test_rows_without_known_features_score_as_empty_rows():
    rows = hashed([[(0, 3, 1.0)], [(0, 5, 1.0), (1, 3, 1.0)]], values=False)
    vocabulary = build_vocabulary(
        count_features(np.array([5], np.uint32), np.zeros(1, np.uint16), 3, HASH_BITS), COLUMNS, HASH_BITS, 1, 1
    )
    assert RowLookup(vocabulary).rows(rows.indices, rows.fields).tolist() == [ABSENT, 0, ABSENT]
    partition = scoring_partition(rows, RowLookup(vocabulary))
    assert partition.indptr.tolist() == [0, 0, 1]


# -------------------------------------------------------------------------------------------------- on disk ----


def example() -> SparsePartition:
    """Four rows, two of which store values, with weights."""
    indices = [[1, 2], [1, 1, 4], [2], [3, 3]]
    rows = [[(j, index, 1.0) for j, index in enumerate(row)] for row in indices]
    sample = hashed(rows, weights=True, values=False)
    counts = count_features(sample.indices, sample.fields, 3, HASH_BITS)
    vocabulary = build_vocabulary(counts, COLUMNS, HASH_BITS, 1, 2)
    return build_partition(sample, vocabulary, RowLookup(vocabulary))


def test_a_saved_partition_opens_as_a_map_that_costs_no_memory(tmp_path: Path):
    partition = example()
    partition.save(tmp_path / "cache" / "p.safetensors")
    opened = SparsePartition.open(tmp_path / "cache" / "p.safetensors")
    opened.check()
    for entry in dataclasses.fields(SparsePartition):
        ours, theirs = getattr(partition, entry.name), getattr(opened, entry.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=entry.name)
        if isinstance(theirs, np.ndarray):
            assert theirs.dtype == ours.dtype
            assert not theirs.flags.writeable
    assert opened.nbytes == partition.nbytes > 0
    assert sys.getsizeof(partition) >= partition.nbytes
    assert sys.getsizeof(opened) < 1100 < sys.getsizeof(partition)


def changed(array: np.ndarray, position: int, value: int) -> np.ndarray:
    copy = array.copy()
    copy[position] = value
    return copy


DAMAGE = {
    "an index beyond the features": lambda p: {"indices": changed(p.indices, 2, len(p.features))},
    "offsets that begin elsewhere": lambda p: {"indptr": changed(p.indptr, 0, 1)},
    "offsets that fall": lambda p: {"indptr": changed(p.indptr, 2, 0)},
    "offsets beyond the entries": lambda p: {"indptr": changed(p.indptr, -1, len(p.indices) + 1)},
    "negative offsets": lambda p: {"indptr": changed(p.indptr, 1, -5)},
    "offsets of other rows": lambda p: {"indptr": p.indptr[:-1]},
    "no offsets": lambda p: {"indptr": p.indptr[:0]},
    "too few fields": lambda p: {"fields": p.fields[:-1]},
    "too few values": lambda p: {"values": p.values[:-1]},
    "too many values": lambda p: {"values": np.append(p.values, np.float32(1))},
    "too few labels": lambda p: {"labels": p.labels[:-1]},
    "too few weights": lambda p: {"weights": p.weights[:-1]},
    "too few features": lambda p: {"features": p.features[:-1]},
    "more factored features than features": lambda p: {"n_factored": len(p.features) + 1},
    "a negative number of factored features": lambda p: {"n_factored": -1},
    "more implicit rows than rows": lambda p: {"n_implicit": p.n_rows + 1},
    "a negative number of implicit rows": lambda p: {"n_implicit": -1},
    "fewer implicit rows than values allow": lambda p: {"n_implicit": 0},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_partition_that_would_read_outside_its_arrays_is_refused(damage):
    partition = example()
    assert (partition.n_rows, partition.n_implicit, len(partition.weights)) == (4, 2, 4)
    partition.check()
    with pytest.raises(DataError, match="out of range; delete the partition cache"):
        dataclasses.replace(partition, **damage(partition)).check()


# --------------------------------------------------------------------------------------------- hashed rows ----


def as_lists(rows: HashedRows) -> list[list[tuple[int, int, float]]]:
    values = rows.values if rows.values.size else np.ones(len(rows.indices), np.float32)
    flat = list(zip(rows.fields.tolist(), rows.indices.tolist(), values.tolist(), strict=True))
    return [flat[start:stop] for start, stop in itertools.pairwise(rows.indptr)]


@given(samples(), st.lists(st.integers(0, 12), max_size=4))
def test_slices_put_together_are_the_whole(sample, cuts):
    rows, _ = sample
    bounds = [0, *sorted(min(cut, rows.n_rows) for cut in cuts), rows.n_rows]
    parts = [rows.slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    whole = concatenate_rows(parts)
    for entry in dataclasses.fields(HashedRows):
        ours, theirs = getattr(whole, entry.name), getattr(rows, entry.name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=entry.name)
    assert [row for part in parts for row in as_lists(part)] == as_lists(rows)


def test_parts_with_and_without_values_or_weights_make_one_whole():
    plain = hashed([[(0, 1, 1.0)], [(1, 2, 1.0)]], weights=False, values=False)
    full = hashed([[(0, 3, 2.0), (2, 1, 0.5)]], weights=True)
    whole = concatenate_rows([plain, full, plain])
    assert whole.values.tolist() == [1.0, 1.0, 2.0, 0.5, 1.0, 1.0]
    assert whole.weights.tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert whole.indptr.tolist() == [0, 1, 2, 4, 5, 6]


@given(
    st.lists(
        st.lists(st.integers(0, 5).map(lambda n: n << 11) | st.integers(0, 2**32 - 2), max_size=12) | st.just([7] * 2),
        max_size=6,
    )
)
def test_an_index_twice_in_a_row_is_found_whatever_others_share_its_last_bits(rows: list[list[int]]) -> None:
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    indices = np.array([index for row in rows for index in row], np.uint32)
    assert scoring_rows._has_duplicates(indptr, indices) == any(len({*row}) < len(row) for row in rows)
