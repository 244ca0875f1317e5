"""The features seen in training, most frequent first; their order is the row order of the parameter table.

Frequent features sharing cache lines makes training faster, "does it own factors" becomes one compare
(`row < n_factored`), and the sorted row list of a partition is a list of gathers that walk memory forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled, part
from dfm.data.draw import lots_of
from dfm.data.hashing import RARE, token_index
from dfm.storage.arrays import distinct, read_only

ABSENT = np.uint32(0xFFFFFFFF)
"""The row of a feature that the vocabulary does not hold."""
DENSE_BITS = 26
"""Up to here a table of all indices is the fastest look-up (256 MB) and tally (512 MB); beyond, sorted arrays are."""


@dataclass(frozen=True, slots=True)
class FeatureCounts:
    """Occurrences of hashed features in some rows: ids uint32[n] ascending, counts int64[n], fields uint16[n].

    Two columns may collide on one id; the lowest field that uses it is recorded.
    """

    ids: NDArray[np.uint32]
    counts: NDArray[np.int64]
    fields: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """ids uint32[n], counts int64[n], fields uint16[n], by descending count (ties: ascending id) of when they came in.

    The first `n_factored` own factors. `rare` int64[n_fields] is the row of each field's bucket for rare and unseen
    categories, -1 where the field has none. `seen` uint8[2^hash_bits / 8]: a bit for each index that training rows had,
    kept or not; sights int64[n_fields, n_bins]: entries of training rows by field and bin, as `dfm.model.drift` sorts
    them. None where nobody remembers.
    """

    ids: NDArray[np.uint32]
    counts: NDArray[np.int64]
    fields: NDArray[np.uint16]
    rare: NDArray[np.int64]
    n_factored: int
    hash_bits: int
    seen: NDArray[np.uint8] | None = None
    sights: NDArray[np.int64] | None = None

    @property
    def n_features(self) -> int:
        """Number of rows of the parameter table."""
        return len(self.ids)

    @property
    def n_fields(self) -> int:
        """Number of fields."""
        return len(self.rare)


def spread_of(counts: NDArray[np.int64], n_rows: int) -> float:
    """Σ p (1 - p) over features, p the share of rows that have one: how many features of a row others do not share.

    counts int64[n_features]: entries in so many rows. About 39 of 39 categories; 0 of a dense matrix.
    """
    shares = np.minimum(counts / max(n_rows, 1), 1.0)
    return float((shares * (1.0 - shares)).sum())


_TILE = 2048
"""Rows that are counted field by field: a field's frequent values stay in the nearest cache, and the rows in the next.
"""


_COUNT_BITS = np.uint64(48)
_COUNT = (np.uint64(1) << _COUNT_BITS) - np.uint64(1)
_LAST_FIELD = np.uint64(np.iinfo(np.uint16).max)
"""A word of a tally: how often an index came, in the lower 48 bits, and above, from the last field down, the lowest
field that it came in. A word of nothing is 0, and each entry is a look at one place of memory.
"""


@part
def _counted_in(word, field, amount):  # type: ignore[no-untyped-def]
    """A word of a tally with `amount` more entries of a field."""
    mark = (_LAST_FIELD - np.uint64(field)) << _COUNT_BITS
    return (word if word >= mark else mark | (word & _COUNT)) + np.uint64(amount)


@compiled
def _tally(indices, fields, words):  # type: ignore[no-untyped-def]
    """Adds entries to `words` uint64[2**bits], in place."""
    for i in range(indices.size):
        words[indices[i]] = _counted_in(words[indices[i]], fields[i], 1)


@compiled
def _tally_table(table, words):  # type: ignore[no-untyped-def]
    """The same of uint32[n_rows, n_fields], an entry of each field a row."""
    n_rows, n_fields = table.shape
    for start in range(0, n_rows, _TILE):
        for field in range(n_fields):
            for row in range(start, min(start + _TILE, n_rows)):
                words[table[row, field]] = _counted_in(words[table[row, field]], field, 1)


@compiled
def _tally_column(indices, field, words):  # type: ignore[no-untyped-def]
    """The same of the entries of one field."""
    for i in range(indices.size):
        words[indices[i]] = _counted_in(words[indices[i]], field, 1)


@compiled
def _tally_counted(indices, amounts, field, words):  # type: ignore[no-untyped-def]
    """The same of entries that were counted: amounts uint32[n] of each index."""
    for i in range(indices.size):
        if amounts[i]:
            words[indices[i]] = _counted_in(words[indices[i]], field, amounts[i])


@compiled
def _tally_counts(ids, counts, fields, words):  # type: ignore[no-untyped-def]
    """The same of a part's counts int64[n] in fields uint16[n]."""
    for i in range(ids.size):
        if counts[i]:
            words[ids[i]] = _counted_in(words[ids[i]], fields[i], counts[i])


class FeatureTally:
    """Adds occurrences up in a table of all 2**hash_bits indices; `fits` says whether it is not too large."""

    def __init__(self, hash_bits: int) -> None:
        self._words = np.zeros(1 << hash_bits, np.uint64)
        self._waiting: dict[int, tuple[NDArray[np.uint32], NDArray[np.uint32]]] = {}

    @staticmethod
    def fits(hash_bits: int) -> bool:
        """Whether a table of all indices is used."""
        return hash_bits <= DENSE_BITS

    def add_column(self, field: int, indices: NDArray[np.uint32], amounts: NDArray[np.uint32] | None = None) -> None:
        """Count entries of a field, uint32[n]; `amounts` uint32[n] of them where they were counted before.

        Amounts of the very same indices, as batches with one dictionary have, are added up before they are counted.
        """
        if amounts is None:
            _tally_column(read_only(indices), np.uint16(field), self._words)
            return
        known = self._waiting.get(field)
        if known is not None and known[0] is indices:
            np.add(known[1], amounts, out=known[1])
            return
        self._count(field)
        self._waiting[field] = indices, amounts.copy()

    def _count(self, field: int) -> None:
        """Count what waits of a field."""
        indices, amounts = self._waiting.pop(field, (None, None))
        if indices is not None and amounts is not None:
            _tally_counted(read_only(indices), amounts, np.uint16(field), self._words)

    def add_rows(self, indices: NDArray[np.uint32], fields: NDArray[np.uint16], n_fields: int) -> None:
        """Count the entries of rows, uint32[n_entries]; fields: as in `count_features`."""
        if fields.size:
            _tally(indices, fields, self._words)
        elif indices.size:
            _tally_table(indices.reshape(-1, n_fields), self._words)

    def counts(self) -> FeatureCounts:
        """All that was counted."""
        for field in list(self._waiting):
            self._count(field)
        return _counted(self._words)


def count_features(
    indices: NDArray[np.uint32], fields: NDArray[np.uint16], n_fields: int, hash_bits: int
) -> FeatureCounts:
    """Occurrences of each index (uint32[n_entries]; `fields` uint16[n_entries], or empty for one entry per field)."""
    if FeatureTally.fits(hash_bits):
        tally = FeatureTally(hash_bits)
        tally.add_rows(indices, fields, n_fields)
        return tally.counts()
    if not fields.size:
        fields = (np.arange(len(indices)) % max(n_fields, 1)).astype(np.uint16)
    return merge_counts([FeatureCounts(indices, np.ones(len(indices), np.int64), fields)], hash_bits)


_BLOCK = 1 << 16
"""Words of a tally that are read out at a time, so that what is made of them stays near."""


def _counted(words: NDArray[np.uint64]) -> FeatureCounts:
    """The features that a tally has entries of."""
    n = int(np.count_nonzero(words))
    found = FeatureCounts(np.empty(n, np.uint32), np.empty(n, np.int64), np.empty(n, np.uint16))
    start = 0
    for first in range(0, len(words), _BLOCK):
        block = words[first : first + _BLOCK]
        at = np.flatnonzero(block != 0)
        those, block = slice(start, start + len(at)), block[at]
        found.ids[those] = at + first
        found.counts[those] = block & _COUNT
        found.fields[those] = _LAST_FIELD - (block >> _COUNT_BITS)
        start += len(at)
    return found


def merge_counts(parts: Sequence[FeatureCounts], hash_bits: int) -> FeatureCounts:
    """The counts of all rows that the parts counted."""
    if hash_bits <= DENSE_BITS:
        words = np.zeros(1 << hash_bits, np.uint64)
        for each in parts:
            _tally_counts(read_only(each.ids), read_only(each.counts), read_only(each.fields), words)
        return _counted(words)
    all_ids = np.concatenate([part.ids for part in parts])
    if not len(all_ids):
        return FeatureCounts(all_ids, np.zeros(0, np.int64), np.zeros(0, np.uint16))
    order = np.argsort(all_ids, kind="stable")
    ids = all_ids[order]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    return FeatureCounts(
        ids[starts],
        np.add.reduceat(np.concatenate([part.counts for part in parts])[order], starts),
        np.minimum.reduceat(np.concatenate([part.fields for part in parts])[order], starts),
    )


def with_earlier(counts: FeatureCounts, earlier: Vocabulary, share: float, lots: int, hash_bits: int) -> FeatureCounts:
    """The counts, and with them a share (0 to 1) of those that an earlier vocabulary has of its features.

    Rounded up or down by lot, which a number of 32 bits decides, so that few occurrences fade as slowly as many, and
    what is counted no more is gone one day. Buckets of rare categories are no features.
    """
    own = np.ones(earlier.n_features, np.bool_)
    own[earlier.rare[earlier.rare >= 0]] = False
    drawn = lots_of(earlier.ids.astype(np.uint64), lots << 32)
    amounts = np.floor(share * earlier.counts + drawn).astype(np.int64)
    kept = np.flatnonzero(own & (amounts > 0))
    kept = kept[np.argsort(earlier.ids[kept])]
    known = FeatureCounts(earlier.ids[kept], amounts[kept], earlier.fields[kept])
    return merge_counts([counts, known], hash_bits)


def n_besides(vocabulary: Vocabulary, counts: FeatureCounts) -> int:
    """The features of a vocabulary, but for its buckets, that were not counted."""
    besides = ~_are_among(vocabulary.ids, counts.ids)
    besides[vocabulary.rare[vocabulary.rare >= 0]] = False
    return int(np.count_nonzero(besides))


def build_vocabulary(
    counts: FeatureCounts, columns: Sequence[str], hash_bits: int, min_count: int, min_count_factors: int
) -> Vocabulary:
    """Drop features rarer than `min_count` into their field's rare bucket; order the rest by frequency.

    columns: the column name of each field, which seeds its rare bucket's token.
    """
    is_kept, rare_rows = counts.counts >= min_count, np.full(len(columns), -1, np.int64)
    features, rare = _those(counts, is_kept), _those(counts, ~is_kept)
    if min_count > 1:
        rare_ids = np.array([token_index(column, RARE, hash_bits) for column in columns], np.uint32)
        pooled = np.bincount(rare.fields, rare.counts, len(columns)).astype(np.int64)
        buckets = FeatureCounts(rare_ids, pooled, np.arange(len(columns), dtype=np.uint16))
        features = _with(features, _united(buckets))
    order = _by_count(features.counts)
    if min_count > 1:
        rare_rows = _inverse(order)[np.searchsorted(features.ids, rare_ids)]
    ids, occurrences, fields = features.ids[order], features.counts[order], features.fields[order]
    n_factored = int(np.count_nonzero(occurrences >= min_count_factors))
    return Vocabulary(ids, occurrences, fields, rare_rows, n_factored, hash_bits)


def _by_count(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order that puts larger counts first and leaves equal ones as they stand: most counts are small, and small
    numbers are sorted by their digits.
    """
    most = int(np.iinfo(np.uint16).max)
    order = np.argsort(most - np.minimum(counts, most).astype(np.uint16), kind="stable")
    large = order[: np.count_nonzero(counts >= most)]
    large[:] = large[np.argsort(-counts[large], kind="stable")]
    return order


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each number in an order of all numbers below its length."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _with(features: FeatureCounts, few: FeatureCounts) -> FeatureCounts:
    """`_united` of both, whose ids ascend: the few are put among the others, which are not sorted again."""
    new = few.ids[~_are_among(few.ids, features.ids)]
    at = np.searchsorted(features.ids, new)
    ids = np.insert(features.ids, at, new)
    counts = np.insert(features.counts, at, 0)
    fields = np.insert(features.fields, at, np.iinfo(np.uint16).max)
    at = np.searchsorted(ids, few.ids)
    counts[at] += few.counts
    fields[at] = np.minimum(fields[at], few.fields)
    return FeatureCounts(ids, counts, fields)


def _united(*parts: FeatureCounts) -> FeatureCounts:
    """All features of the parts, those that were never seen too: an unseen category may need its bucket."""
    ids = distinct(np.concatenate([part.ids for part in parts]).astype(np.uint32))
    counts, fields = np.zeros(len(ids), np.int64), np.full(len(ids), np.iinfo(np.uint16).max, np.uint16)
    for each in parts:
        at = np.searchsorted(ids, each.ids)
        np.add.at(counts, at, each.counts)
        np.minimum.at(fields, at, each.fields)
    return FeatureCounts(ids, counts, fields)


NO_COUNTS = FeatureCounts(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uint16))


def seen_rarely(counts: FeatureCounts, min_count: int) -> FeatureCounts:
    """The features that a vocabulary of these counts leaves out."""
    return _those(counts, counts.counts < min_count)


def _those(counts: FeatureCounts, chosen: NDArray[np.bool_]) -> FeatureCounts:
    """Those that are chosen, bool[n]: NumPy takes numbered ones four times as fast as chosen ones."""
    at = np.flatnonzero(chosen)
    return FeatureCounts(counts.ids[at], counts.counts[at], counts.fields[at])


def grow(
    vocabulary: Vocabulary, waiting: FeatureCounts, later: FeatureCounts, min_count: int, min_count_factors: int
) -> tuple[Vocabulary, FeatureCounts]:
    """The vocabulary with features of later rows, and the features that still wait.

    waiting: those seen in earlier rows, fewer than `min_count` times. Whatever has a row, or factors, keeps them; where
    nothing comes in, so do rows their order (`ids` is the same array then), and only counts change.
    """
    known = FeatureCounts(vocabulary.ids, vocabulary.counts, vocabulary.fields)
    seen = _united(waiting, later)
    comes_in = _are_among(seen.ids, np.sort(known.ids)) | (seen.counts >= min_count)
    still_rare = _those(later, ~_are_among(later.ids, seen.ids[comes_in]))
    everything = _united(known, _those(seen, comes_in), _pooled(vocabulary, still_rare))
    at = np.searchsorted(everything.ids, vocabulary.ids)
    everything.fields[at] = vocabulary.fields
    owns_factors = everything.counts >= min_count_factors
    owns_factors[at[: vocabulary.n_factored]] = True
    grown = _with_features(vocabulary, everything, owns_factors)
    if (grown.n_features, grown.n_factored) == (vocabulary.n_features, vocabulary.n_factored):
        grown = replace(vocabulary, counts=everything.counts[at])
    return grown, _those(seen, ~comes_in)


def _are_among(ids: NDArray[np.uint32], ascending: NDArray[np.uint32]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(ids), np.bool_)
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return ascending[at] == ids


def _pooled(vocabulary: Vocabulary, rare: FeatureCounts) -> FeatureCounts:
    """Occurrences of rare features as those of the buckets of their fields, where there are such."""
    amounts = np.bincount(rare.fields.astype(np.int64), weights=rare.counts, minlength=vocabulary.n_fields)
    fields = np.flatnonzero((vocabulary.rare >= 0) & (amounts > 0))
    ids = vocabulary.ids[vocabulary.rare[fields]]
    return FeatureCounts(ids, amounts[fields].astype(np.int64), fields.astype(np.uint16))


def _with_features(vocabulary: Vocabulary, features: FeatureCounts, owns_factors: NDArray[np.bool_]) -> Vocabulary:
    """Those with factors first, frequent ones before others."""
    order = np.lexsort((features.ids, -features.counts, ~owns_factors))
    grown = Vocabulary(
        features.ids[order],
        features.counts[order],
        features.fields[order],
        vocabulary.rare,
        int(np.count_nonzero(owns_factors)),
        vocabulary.hash_bits,
    )
    buckets = vocabulary.rare.copy()
    buckets[buckets >= 0] = rows_of(grown, vocabulary.ids[buckets[buckets >= 0]])
    return replace(grown, rare=buckets)


def rows_of(vocabulary: Vocabulary, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Rows, uint32[n], of features that the vocabulary holds."""
    order = np.argsort(vocabulary.ids).astype(np.uint32)
    return order[np.searchsorted(vocabulary.ids, ids, sorter=order)]
