"""Drift: by column, how values of rows differ from those that a model was trained on.

A value is missing, rare (too rare in training to have parameters of its own), never seen, one of the most frequent
values of its column, or another known one. Numbers that are standardized share one feature: they are told apart by
mean and quantiles of the training rows, and by whether they lie far beyond the others. Of numbers as they are nobody
knows any; they are missing or not. Entries are counted, of training rows and of those that are scored, in the same way:
counts add up over partitions, and what shares an index of the hash table shares it on both sides.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import hashing
from dfm.data.coded_rows import CodedRows
from dfm.data.hashed_rows import HashedRows
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import MOMENTS, NOTHING_KNOWN, TRANSFORMS, NumberStatistics
from dfm.data.vocabulary import ABSENT, FeatureCounts, Vocabulary
from dfm.storage.arrays import read_only

TOP = 20
"""Most frequent values of a column that the stability index tells apart."""
MISSING_BIN, RARE_BIN, UNSEEN_BIN, OTHER_BIN, FIRST_TOP = 0, 1, 2, 3, 4
N_BINS = FIRST_TOP + TOP
FIRST_SPAN, N_EDGES = FIRST_TOP + 1, TOP - 2
"""Spans of numbers have the bins of frequent values but for the first, which holds numbers that nobody told apart: so
did models of earlier versions.
"""
_FAR = 6.0
"""Deviations from the mean beyond which a number is far from those of training, whatever their quantiles."""
MOST_SEEN_BITS = 24
"""Hash bits up to which a model remembers every index that was ever seen: 2 MiB of bits."""
_FLOOR = 1e-4
"""The least share of a bin in the stability index, which would else be infinite for one that is empty on one side."""
Counts = NDArray[np.int64]


def seen_bits(
    counts: FeatureCounts, hash_bits: int, before: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8] | None:
    """Which indices occur at all, a bit each, uint8[2^hash_bits / 8]; None of a hash table that is too large. before:
    the bits of earlier rows, whose values count as well, unless half of all indices then occur: a new value would be
    known by chance.
    """
    if hash_bits > MOST_SEEN_BITS:
        return None
    seen = np.zeros(1 << hash_bits, np.bool_)
    seen[counts.ids] = True
    bits = np.packbits(seen)
    if before is None:
        return bits
    both = bits | before
    return both if np.unpackbits(both).mean() <= 0.5 else bits


@dataclass(frozen=True, eq=False)
class Sights:
    """Entries by field and bin, int64[n_fields, N_BINS]."""

    counts: Counts

    def __add__(self, other: Sights) -> Sights:
        return Sights(self.counts + other.counts)


_bins: weakref.WeakKeyDictionary[RowLookup, NDArray[np.uint8]] = weakref.WeakKeyDictionary()
"""The bins of the rows that a look-up finds, for the next hashing task of its vocabulary."""


@dataclass(frozen=True, eq=False)
class Watcher:
    """Sorts the entries of rows into bins. row_bins: uint8[n_features] by row of the table; missing: int64[n_fields],
    the index of a missing value, -1 where a field has none; edges: float32[n_fields, N_EDGES], rising, those between
    spans of a field's numbers as features carry them, then infinite ones: all are where numbers are not told apart.
    """

    row_bins: NDArray[np.uint8]
    missing: Counts
    edges: NDArray[np.float32]
    training: Counts | None
    lookup: RowLookup
    seen: NDArray[np.uint8] | None

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        schema: ResolvedSchema,
        statistics: Mapping[str, NumberStatistics],
        lookup: RowLookup,
    ) -> Watcher:
        """The watcher of a model."""
        bits = vocabulary.hash_bits
        missing = np.array(
            [
                -1 if entry.kind in ("cross", "vector") else hashing.token_index(entry.name, hashing.MISSING, bits)
                for entry in schema.fields
            ],
            np.int64,
        )
        edges = np.full((len(schema.fields), N_EDGES), np.inf, np.float32)
        for entry in schema.fields:
            if _carries_numbers(entry) and TRANSFORMS[entry.transform].statistics == MOMENTS:
                found = _edges(entry, statistics.get(entry.name, NOTHING_KNOWN))
                edges[entry.index, : len(found)] = found
        bins = _bins.get(lookup)
        if bins is None:
            bins = _bins[lookup] = _row_bins(vocabulary, missing)
        return cls(bins, missing, read_only(edges), vocabulary.sights, lookup, vocabulary.seen)

    def sights(self, rows: HashedRows | CodedRows) -> Sights:
        """The entries of some rows."""
        values, amounts = np.zeros(0, np.float32), np.zeros(0, np.int64)
        if isinstance(rows, HashedRows):
            indices, fields, values = rows.indices, rows.fields, rows.values
        else:
            indices, fields, amounts = rows.counted()
        table_rows = self.lookup.rows(indices, fields)
        counts = np.zeros((len(self.missing), N_BINS), np.int64)
        seen = read_only(np.zeros(0, np.uint8) if self.seen is None else self.seen)
        entries = read_only(indices), read_only(fields), read_only(values), read_only(amounts)
        _count(entries, table_rows, (self.row_bins, self.missing, seen, self.edges), counts)
        return Sights(counts)

    def records(self, sights: Sights, schema: ResolvedSchema) -> list[dict[str, Any]]:
        """A record of each column, the one that drifted most first. JSON-ready.

        values: entries; missing, rare, unseen: shares of them (unseen is null, and rare has both, of a hash table too
        large to remember); training_missing, training_rare: the same in training; psi: the population stability index
        over missing, rare or unseen, the most frequent values and all others, of standardized numbers spans of them;
        least_psi: that over missing, rare or unseen, and all others. Null is what nobody knows: of a column without
        entries, or of a model that was not trained as a job; psi, too, where a model does not tell numbers apart.
        """
        found = [self._record(entry, sights.counts[entry.index]) for entry in schema.fields]
        return sorted(found, key=lambda record: (-(index_of(record) or 0.0), record["column"]))

    def _record(self, entry: Field, now: Counts) -> dict[str, Any]:
        shares, total = now / max(int(now.sum()), 1), int(now.sum())
        then = np.zeros(N_BINS, np.int64) if self.training is None else self.training[entry.index]
        trained, is_known = then / max(int(then.sum()), 1), bool(then.any())
        both, is_compared = (_known(shares), _known(trained)), bool(total and is_known)
        are_apart = not _carries_numbers(entry) or self._were_apart(entry.index, then)
        return {
            "column": entry.name,
            "values": total,
            "missing": float(shares[MISSING_BIN]),
            "rare": float(shares[RARE_BIN]),
            "unseen": None if self.seen is None else float(shares[UNSEEN_BIN]),
            "training_missing": float(trained[MISSING_BIN]) if is_known else None,
            "training_rare": float(trained[RARE_BIN]) if is_known else None,
            "psi": stability_index(*both) if is_compared and are_apart else None,
            "least_psi": stability_index(*map(_at_least, both)) if is_compared else None,
        }

    def _were_apart(self, number: int, then: Counts) -> bool:
        """Whether training counted a field's numbers by span. Models of earlier versions have them in one bin: any, for
        another field may own their index. Those of a column of one value are in that of its mean.
        """
        n_spans, is_constant = np.count_nonzero(then[OTHER_BIN:]), np.isinf(self.edges[number, 2])
        is_split = n_spans != 1 or (is_constant and then[FIRST_SPAN + 1] > 0)
        return bool(self.edges[number, 0] < np.inf and is_split)


def index_of(record: Mapping[str, Any]) -> float | None:
    """The stability index of a column's record; where values are not told apart, what it is at least."""
    return record["least_psi"] if record["psi"] is None else record["psi"]


def _carries_numbers(entry: Field) -> bool:
    """Whether all numbers of a field are one feature, which carries them."""
    return entry.kind == "numeric" and not entry.bucketed


def _edges(entry: Field, known: NumberStatistics) -> NDArray[np.float64]:
    """Edges between spans of numbers as a feature carries them, float64[n_edges], rising: the mean, without which two
    values could share a span, quantiles, as many as there is room for, and those beyond which lies what is far from
    all; of a column of one value, the two around it.
    """
    if not known.stdev:
        around = 1e-6 * max(abs(known.mean), 1.0)
        return np.array([-around, around])
    bounds = known.bounds
    if len(bounds) > N_EDGES - 3:
        picks = np.arange(1, N_EDGES - 2) * (len(bounds) + 1) / (N_EDGES - 2)
        bounds = bounds[np.rint(picks).astype(np.int64) - 1]
    return np.unique(np.append(TRANSFORMS[entry.transform].values(bounds, known), [-_FAR, 0.0, _FAR]))


def _known(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares without a bin for values never seen, of which training cannot have any: they are rare ones."""
    found = shares[np.arange(N_BINS) != UNSEEN_BIN]
    found[RARE_BIN] += shares[UNSEEN_BIN]
    return found


def _at_least(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of missing, of rare and of all other values."""
    return np.append(shares[:2], shares[2:].sum())


@compiled
def _count(entries, rows, known, counts):  # type: ignore[no-untyped-def]
    """Adds every entry to `counts` int64[n_fields, N_BINS], in place. entries: indices, fields, values, and how often
    each comes; fields: empty where they come in order; values: empty where all are 1; amounts: empty where all come
    once; rows: of the table; known: of a watcher row_bins, missing, seen (bits by index, empty where nobody remembers)
    and edges.
    """
    indices, fields, values, amounts = entries
    row_bins, missing, seen, edges = known
    n_fields = missing.size
    for i in range(indices.size):
        field = fields[i] if fields.size else i % n_fields
        index, amount = indices[i], amounts[i] if amounts.size else 1
        if index == missing[field]:
            counts[field, MISSING_BIN] += amount
            continue
        bin_number = row_bins[rows[i]] if rows[i] != ABSENT else RARE_BIN
        if bin_number == RARE_BIN and seen.size and not (seen[index >> 3] >> (7 - (index & 7))) & 1:
            bin_number = UNSEEN_BIN
        if bin_number >= OTHER_BIN and edges[field, 0] < np.inf:
            value = values[i] if values.size else np.float32(1.0)
            bin_number = FIRST_SPAN
            for e in range(edges.shape[1]):  # without a branch: the compiler makes it one of vectors
                bin_number += edges[field, e] <= value
        counts[field, bin_number] += amount


def _row_bins(vocabulary: Vocabulary, missing: Counts) -> NDArray[np.uint8]:
    """The bin of each row of the table; rows come by falling frequency, so the first of a field are its top values."""
    bins = np.full(vocabulary.n_features, OTHER_BIN, np.uint8)
    special = np.zeros(vocabulary.n_features, np.bool_)
    for bin_number, ids in ((RARE_BIN, None), (MISSING_BIN, missing[missing >= 0])):
        rows = vocabulary.rare[vocabulary.rare >= 0] if ids is None else np.flatnonzero(np.isin(vocabulary.ids, ids))
        bins[rows], special[rows] = bin_number, True
    for number in range(vocabulary.n_fields):
        rows = np.flatnonzero((vocabulary.fields == number) & ~special)[:TOP]
        bins[rows] = FIRST_TOP + np.arange(len(rows))
    return bins


def stability_index(now: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    """The population stability index, Σ (a − b) ln(a / b) over bins of shares, float64[n_bins] each, at least 0.0001.

    In nats: the divergence of Jeffreys (1946), with the rule of thumb of credit scoring that below 0.1 rows are as
    before, and above 0.25 they are not (Siddiqi 2006, Credit Risk Scorecards).
    """
    a, b = np.maximum(now, _FLOOR), np.maximum(before, _FLOOR)
    return float(((a - b) * np.log(a / b)).sum())
