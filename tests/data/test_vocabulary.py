"""The list of features against counting in plain Python: which are kept, in which order, and where the others go."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data.row_lookup import RowLookup, row_lookup
from dfm.data.vocabulary import (
    ABSENT,
    FeatureCounts,
    FeatureTally,
    Vocabulary,
    build_vocabulary,
    count_features,
    grow,
    merge_counts,
    n_besides,
    rows_of,
    seen_rarely,
    with_earlier,
)
from dfm.storage.arrays import read_only
from tests.support.tokens import RARE, token

N_FIELDS = 3
COLUMNS = ["C1", "C2", "I1"]
DENSE, SORTED = 5, 30
"""Hash bits on both sides of the limit up to which tables of all indices are used; all indices below fit either."""
ENTRIES = st.lists(st.tuples(st.integers(0, 2**DENSE - 1), st.integers(0, N_FIELDS - 1)), max_size=60)


def count(entries: list[tuple[int, int]], hash_bits: int) -> FeatureCounts:
    indices = np.array([index for index, _ in entries], np.uint32)
    fields = np.array([field for _, field in entries], np.uint16)
    return count_features(read_only(indices), read_only(fields), N_FIELDS, hash_bits)


def as_dict(counts: FeatureCounts) -> dict[int, tuple[int, int]]:
    """id: (count, field), after the types and the order were checked."""
    assert (counts.ids.dtype, counts.counts.dtype, counts.fields.dtype) == (np.uint32, np.int64, np.uint16)
    assert np.all(np.diff(counts.ids.astype(np.int64)) > 0)
    return dict(zip(counts.ids.tolist(), zip(counts.counts.tolist(), counts.fields.tolist(), strict=True), strict=True))


def slow_counts(entries: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    tally = Counter(index for index, _ in entries)
    return {index: (tally[index], min(field for i, field in entries if i == index)) for index in sorted(tally)}


# ------------------------------------------------------------------------------------------------- counting ----


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(entries=ENTRIES)
def test_counts_are_those_of_a_counter_and_a_shared_feature_belongs_to_its_lowest_field(hash_bits, entries):
    assert as_dict(count(entries, hash_bits)) == slow_counts(entries)


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(rows=st.lists(st.lists(st.integers(0, 2**DENSE - 1), min_size=N_FIELDS, max_size=N_FIELDS), max_size=20))
def test_rows_of_one_entry_per_field_need_no_field_numbers(hash_bits, rows):
    indices = np.array(rows, np.uint32).reshape(-1)
    counts = count_features(read_only(indices), read_only(np.zeros(0, np.uint16)), N_FIELDS, hash_bits)
    assert as_dict(counts) == slow_counts([(index, field) for row in rows for field, index in enumerate(row)])


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(parts=st.lists(ENTRIES, min_size=1, max_size=5))
def test_merged_counts_are_the_counts_of_all_rows_in_any_order(hash_bits, parts):
    counted = [count(part, hash_bits) for part in parts]
    expected = slow_counts([entry for part in parts for entry in part])
    assert as_dict(merge_counts(counted, hash_bits)) == expected
    assert as_dict(merge_counts(counted[::-1], hash_bits)) == expected
    halves = [merge_counts(counted[:2], hash_bits), *counted[2:]]
    assert as_dict(merge_counts(halves, hash_bits)) == expected


def test_what_no_row_has_is_not_tallied_and_claims_no_field():
    tally = FeatureTally(4)
    tally.add_column(2, np.array([5, 7, 5], np.uint32))
    tally.add_column(1, np.array([5, 6, 7], np.uint32), np.array([0, 0, 3], np.uint32))
    assert as_dict(tally.counts()) == {5: (2, 2), 7: (4, 1)}


# ----------------------------------------------------------------------------------------------- vocabulary ----


def slow_vocabulary(entries: list[tuple[int, int]], hash_bits: int, min_count: int) -> dict[int, int]:
    """id: count of every feature in the order of the table, by the definition."""
    tally = {index: number for index, (number, _) in slow_counts(entries).items()}
    kept = {index: number for index, number in tally.items() if number >= min_count}
    if min_count > 1:
        for column in COLUMNS:
            kept.setdefault(token(column, RARE, hash_bits), 0)
        for number, field in slow_counts(entries).values():
            if number < min_count:
                kept[token(COLUMNS[field], RARE, hash_bits)] += number
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0])))


@pytest.mark.parametrize("hash_bits", [1, 2, DENSE, 20, SORTED])
@given(entries=ENTRIES, min_count=st.integers(1, 4), min_count_factors=st.integers(1, 8))
def test_features_come_by_count_and_rare_ones_are_pooled_by_field(hash_bits, entries, min_count, min_count_factors):
    entries = [(index % 2**hash_bits, field) for index, field in entries]
    vocabulary = build_vocabulary(count(entries, hash_bits), COLUMNS, hash_bits, min_count, min_count_factors)
    expected = slow_vocabulary(entries, hash_bits, min_count)
    assert dict(zip(vocabulary.ids.tolist(), vocabulary.counts.tolist(), strict=True)) == expected
    assert vocabulary.ids.tolist() == list(expected)
    assert vocabulary.n_features == len(expected)
    assert vocabulary.n_factored == sum(number >= min_count_factors for number in expected.values())
    assert (vocabulary.counts[: vocabulary.n_factored] >= min_count_factors).all()
    assert (vocabulary.ids.dtype, vocabulary.counts.dtype, vocabulary.fields.dtype) == (np.uint32, np.int64, np.uint16)
    if min_count > 1:
        assert vocabulary.ids[vocabulary.rare].tolist() == [token(column, RARE, hash_bits) for column in COLUMNS]
    else:
        assert vocabulary.rare.tolist() == [-1] * N_FIELDS


@given(st.lists(st.sampled_from([1, 2, 65_534, 65_535, 65_536, 65_537, 10**6, 2**33]), max_size=30))
def test_features_come_by_count_however_large_the_counts_are(counts):
    seen = FeatureCounts(
        np.arange(len(counts), dtype=np.uint32), np.array(counts, np.int64), np.zeros(len(counts), np.uint16)
    )
    vocabulary = build_vocabulary(seen, COLUMNS, 20, 1, 1)
    assert vocabulary.ids.tolist() == sorted(range(len(counts)), key=lambda index: (-counts[index], index))


def test_no_occurrence_is_lost_to_the_rare_buckets():
    entries = [(index, index % N_FIELDS) for index in range(30) for _ in range(index)]
    for min_count in (1, 5, 100):
        assert build_vocabulary(count(entries, 20), COLUMNS, 20, min_count, 1).counts.sum() == len(entries)


def test_every_feature_keeps_the_field_that_it_came_from():
    entries = [(7, 2)] * 5 + [(3, 1)] * 4 + [(9, 0)] * 4 + [(9, 1)]
    vocabulary = build_vocabulary(count(entries, 20), COLUMNS, 20, 2, 1)
    rare = [token(column, RARE, 20) for column in COLUMNS]
    fields = dict(zip(vocabulary.ids.tolist(), vocabulary.fields.tolist(), strict=True))
    assert fields == {7: 2, 3: 1, 9: 0, **{index: field for field, index in enumerate(rare)}}


# -------------------------------------------------------------------------------------------------- look-up ----


def look_up(vocabulary: Vocabulary, entries: list[tuple[int, int]]) -> list[int]:
    indices = np.array([index for index, _ in entries], np.uint32)
    fields = np.array([field for _, field in entries], np.uint16)
    return RowLookup(vocabulary).rows(read_only(indices), read_only(fields)).tolist()


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(seen=ENTRIES, asked=ENTRIES, min_count=st.integers(1, 3))
def test_a_known_feature_has_its_row_and_any_other_the_bucket_of_its_field(hash_bits, seen, asked, min_count):
    vocabulary = build_vocabulary(count(seen, hash_bits), COLUMNS, hash_bits, min_count, 1)
    rows = {index: row for row, index in enumerate(vocabulary.ids.tolist())}
    rare = [rows[token(column, RARE, hash_bits)] for column in COLUMNS] if min_count > 1 else [int(ABSENT)] * N_FIELDS
    assert look_up(vocabulary, asked) == [rows.get(index, rare[field]) for index, field in asked]


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
def test_an_unseen_feature_in_a_row_of_one_entry_per_field_gets_the_bucket_of_its_place(hash_bits):
    vocabulary = build_vocabulary(count([(1, 0)] * 9, hash_bits), COLUMNS, hash_bits, 2, 1)
    unknown = next(i for i in range(2**DENSE) if i not in vocabulary.ids.tolist())
    rows = RowLookup(vocabulary).rows(np.full(6, unknown, np.uint32), np.zeros(0, np.uint16))
    assert rows.tolist() == vocabulary.rare.tolist() * 2
    assert RowLookup(vocabulary).rows(np.zeros(0, np.uint32), np.zeros(0, np.uint16)).tolist() == []


def test_a_process_builds_a_lookup_once_and_keeps_the_latest_two():
    vocabularies = [build_vocabulary(count([(n, 0)], DENSE), COLUMNS, DENSE, 1, 1) for n in range(3)]
    keys = [f"a test's vocabulary {n}" for n in range(3)]
    first, second = (row_lookup(vocabularies[n], keys[n]) for n in range(2))
    assert row_lookup(vocabularies[0], keys[0]) is first
    row_lookup(vocabularies[2], keys[2])
    assert row_lookup(vocabularies[1], keys[1]) is second
    assert row_lookup(vocabularies[0], keys[0]) is not first
    assert first.rows(np.array([0, 1], np.uint32), np.zeros(2, np.uint16)).tolist() == [0, int(ABSENT)]


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(chunks=st.lists(ENTRIES, min_size=1, max_size=4), min_count=st.integers(1, 3), least=st.integers(1, 6))
def test_a_vocabulary_that_grows_holds_what_was_seen_often_enough_in_all_chunks(hash_bits, chunks, min_count, least):
    first = count(chunks[0], hash_bits)
    vocabulary = build_vocabulary(first, COLUMNS, hash_bits, min_count, least)
    waiting, seen = seen_rarely(first, min_count), Counter(index for index, _ in chunks[0])
    bucket_ids = [vocabulary.ids[row] for row in vocabulary.rare if row >= 0]
    buckets = {int(index) for index in bucket_ids}
    for chunk in chunks[1:]:
        before = vocabulary
        vocabulary, waiting = grow(vocabulary, waiting, count(chunk, hash_bits), min_count, least)
        seen.update(index for index, _ in chunk)
        rows = rows_of(vocabulary, before.ids)
        found = dict(zip(vocabulary.ids.tolist(), vocabulary.counts.tolist(), strict=True))
        assert found.keys() == {index for index, n in seen.items() if n >= min_count} | buckets
        assert all(found[index] == seen[index] for index in found.keys() - buckets)
        assert as_dict(waiting).keys() == {index for index, n in seen.items() if n < min_count} - buckets
        assert (vocabulary.counts[rows] >= before.counts).all()
        assert (rows[: before.n_factored] < vocabulary.n_factored).all()
        assert (vocabulary.counts[: vocabulary.n_factored] >= least).all()
        assert (vocabulary.counts[vocabulary.n_factored :] < least).all()
        np.testing.assert_array_equal(vocabulary.fields[rows], before.fields)
        assert [vocabulary.ids[row] for row in vocabulary.rare if row >= 0] == bucket_ids
        keeps_order = found.keys() == set(before.ids.tolist()) and vocabulary.n_factored == before.n_factored
        assert (vocabulary.ids is before.ids) == keeps_order


@given(chunks=st.lists(ENTRIES, min_size=1, max_size=4))
def test_a_vocabulary_grown_by_chunks_in_which_all_are_new_is_that_of_all_rows(chunks):
    seen: set[int] = set()
    parts = []
    for chunk in chunks:
        parts.append([(index, field) for index, field in chunk if index not in seen])
        seen |= {index for index, _ in chunk}
    vocabulary, waiting = build_vocabulary(count(parts[0], DENSE), COLUMNS, DENSE, 1, 2), count([], DENSE)
    for part in parts[1:]:
        vocabulary, waiting = grow(vocabulary, waiting, count(part, DENSE), 1, 2)
    whole = build_vocabulary(count([entry for part in parts for entry in part], DENSE), COLUMNS, DENSE, 1, 2)
    for name in ("ids", "counts", "fields", "rare", "n_factored"):
        np.testing.assert_array_equal(getattr(vocabulary, name), getattr(whole, name))


def test_amounts_of_the_same_indices_add_up_and_the_callers_stay_as_they_are():
    tally, indices, amounts = FeatureTally(8), np.array([3, 5, 3], np.uint32), np.array([1, 0, 2], np.uint32)
    for _ in range(3):
        tally.add_column(4, indices, amounts)
    tally.add_column(2, indices.copy(), amounts)
    tally.add_column(4, np.array([9], np.uint32), np.array([7], np.uint32))
    assert amounts.tolist() == [1, 0, 2]
    for _ in range(2):  # what was told once is not told again
        counts = tally.counts()
        assert counts.ids.tolist() == [3, 9]
        assert counts.counts.tolist() == [12, 7]
        assert counts.fields.tolist() == [2, 4]


def test_a_feature_that_a_rare_bucket_collides_with_keeps_its_field():
    """The lowest that uses the index, as of any two that collide."""
    columns, n_indices = ["a", "b", "c", "d"], 4
    counts = FeatureCounts(np.arange(n_indices, dtype=np.uint32), np.full(n_indices, 5), np.zeros(n_indices, np.uint16))
    vocabulary = build_vocabulary(counts, columns, 2, 2, 2)
    assert vocabulary.fields.tolist() == [0] * n_indices
    assert vocabulary.ids[vocabulary.rare].tolist() == [token(column, RARE, 2) for column in columns]


# ------------------------------------------------------------------------------- features of an earlier model ----


@pytest.mark.parametrize("hash_bits", [DENSE, SORTED])
@given(
    yesterday=ENTRIES, today=ENTRIES, share=st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_count=st.integers(1, 3),
    lots=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_share_of_what_was_counted_earlier_counts_on(hash_bits, yesterday, today, share, min_count, lots):
    earlier = build_vocabulary(count(yesterday, hash_bits), COLUMNS, hash_bits, min_count, 2)
    found = as_dict(with_earlier(count(today, hash_bits), earlier, share, lots, hash_bits))
    now, before = slow_counts(today), slow_counts(yesterday)
    buckets = {int(earlier.ids[row]) for row in earlier.rare if row >= 0}
    known = {index for index, (amount, _) in before.items() if amount >= min_count and index not in buckets}
    assert now.keys() <= found.keys() <= now.keys() | known
    for index in now.keys() | known:
        amount, field = now.get(index, (0, N_FIELDS))
        earlier_amount, earlier_field = before[index] if index in known else (0, N_FIELDS)
        total, lowest = found.get(index, (0, N_FIELDS))
        assert math.floor(share * earlier_amount) <= total - amount <= math.ceil(share * earlier_amount)
        assert not total or lowest == (min(field, earlier_field) if total > amount else field)


def test_few_occurrences_fade_as_many_do_by_other_lots_each_time():
    """Of three occurrences nine tenths are 2.7: mostly three, and two of some features, of others the next time."""
    earlier = build_vocabulary(count([(i, 0) for i in range(1000)] * 3, SORTED), COLUMNS, SORTED, 1, 2)
    first, second = (with_earlier(count([], SORTED), earlier, 0.9, lots, SORTED).counts for lots in (1, 2))
    assert {*first} == {2, 3}
    assert first.mean() == pytest.approx(2.7, abs=0.05)
    assert second.mean() == pytest.approx(2.7, abs=0.05)
    assert 0.3 < np.mean(first != second) < 0.5


def test_features_besides_those_counted_are_told_without_the_buckets_of_rare_ones():
    earlier = build_vocabulary(count([(1, 0)] * 6 + [(2, 1)] * 6 + [(3, 1)], SORTED), COLUMNS, SORTED, 2, 2)
    today = count([(1, 0)] * 3 + [(9, 2)] * 3, SORTED)
    vocabulary = build_vocabulary(with_earlier(today, earlier, 0.5, 7, SORTED), COLUMNS, SORTED, 2, 2)
    assert set(vocabulary.ids.tolist()) >= {1, 2, 9}
    assert n_besides(vocabulary, today) == 1  # 2 alone; 3 was rare, and is forgotten
