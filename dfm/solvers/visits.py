"""Visits: features of one field of which no row has two, in the order in which they are solved.

Mostly a visit is a field. Where features of a field do meet (elements of a list, columns of a matrix, values of two
fields that share a hash index) they are coloured, so that no two of a colour meet, and each colour is a visit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.partition import SparsePartition
from dfm.errors import DataError
from dfm.storage.arrays import distinct, read_only

MOST_MEETINGS = 1 << 24
"""Different pairs of features of one field that rows may hold: 128 MB of them."""
_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Visit:
    """Features that are solved together. features uint32[n]: rows of the table, ascending; the first own factors."""

    field: int
    features: NDArray[np.uint32]
    n_factored: int

    def share(self, number: int, total: int) -> tuple[Visit, int]:
        """This of so many shares of the features, and the place of its first."""
        start, stop = (len(self.features) * at // total for at in (number, number + 1))
        return Visit(self.field, self.features[start:stop], max(min(self.n_factored, stop) - start, 0)), start


@dataclass(frozen=True)
class Visits:
    """All features of a table, visit by visit.

    number uint32[n_features]: the visit of each; place uint32[n_features]: where it stands there.
    """

    visits: tuple[Visit, ...]
    number: NDArray[np.uint32]
    place: NDArray[np.uint32]

    @property
    def fields(self) -> list[int]:
        """The field of each visit."""
        return [visit.field for visit in self.visits]

    def of_field(self, field: int) -> list[Visit]:
        """The visits of a field."""
        return [visit for visit in self.visits if visit.field == field]


def meetings_of(partition: SparsePartition) -> NDArray[np.uint64]:
    """Pairs of features of one field that any row holds, as low << 32 | high of rows of the table, ascending.

    DataError where there are too many of them.
    """
    rows = read_only(partition.indptr), read_only(partition.indices)
    found = _meetings(*rows, read_only(partition.fields), read_only(partition.features), MOST_MEETINGS)
    check_meetings(found)
    return found


def check_meetings(found: NDArray[np.uint64]) -> None:
    """DataError where rows hold too many different pairs."""
    if len(found) > MOST_MEETINGS:
        raise DataError(
            f"rows hold more than {MOST_MEETINGS:,} different pairs of features of one field (long lists, or wide "
            'sparse rows), and an exact solver has to keep them apart: use solver = "sgd", leave the list out, or '
            "raise model.min_count"
        )


def united_meetings(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The pairs that any part has, ascending."""
    found = distinct(np.concatenate([np.zeros(0, np.uint64), *parts]))
    check_meetings(found)
    return found


def visits_of(fields: NDArray[np.uint16], n_factored: int, meetings: NDArray[np.uint64]) -> Visits:
    """The visits of features with these fields, uint16[n_features], the first n_factored of which own factors.

    Colours are given greedily in the order of the table, most frequent features first.
    """
    colours = _colours(len(fields), *_neighbours(len(fields), meetings))
    keys = fields.astype(np.int64) * (int(colours.max(initial=0)) + 1) + colours
    known, number = np.unique(keys, return_inverse=True)
    order = np.argsort(number, kind="stable").astype(np.uint32)
    bounds = np.searchsorted(number[order], np.arange(len(known) + 1))
    visits, place = [], np.empty(len(fields), np.uint32)
    for start, stop in itertools.pairwise(bounds):
        features = order[start:stop]
        place[features] = np.arange(len(features), dtype=np.uint32)
        visits.append(Visit(int(fields[features[0]]), features, int(np.searchsorted(features, n_factored))))
    return Visits(tuple(visits), number.astype(np.uint32), place)


def _neighbours(n_features: int, meetings: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """For each feature those it meets: neighbours[starts[j] : starts[j + 1]]."""
    low, high = (meetings >> np.uint64(32)).astype(np.uint32), meetings.astype(np.uint32)
    owners, others = np.concatenate([low, high]), np.concatenate([high, low])
    order = np.argsort(owners, kind="stable")
    return np.searchsorted(owners[order], np.arange(n_features + 1)), others[order]


@compiled
def _colours(n_features, starts, neighbours):  # type: ignore[no-untyped-def]
    """int64[n_features]: to each feature the least number that none of its neighbours before it has."""
    colours = np.zeros(n_features, np.int64)
    taken = np.full(n_features + 1, -1, np.int64)
    for feature in range(n_features):
        for i in range(starts[feature], starts[feature + 1]):
            if neighbours[i] < feature:
                taken[colours[neighbours[i]]] = feature
        colour = 0
        while starts[feature] < starts[feature + 1] and taken[colour] == feature:
            colour += 1
        colours[feature] = colour
    return colours


@compiled
def _place_of(table, key):  # type: ignore[no-untyped-def]
    """The place at which a key stands in an open table, or may be put."""
    mask = np.uint64(table.size - 1)
    at = ((key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(20)) & mask
    while table[at] != _NONE and table[at] != key:
        at = (at + np.uint64(1)) & mask
    return at


@compiled
def _meetings(indptr, indices, fields, features, most):  # type: ignore[no-untyped-def]
    """Different pairs of features of one field, low << 32 | high, ascending; stops beyond `most` of them."""
    table = np.full(1 << 10, _NONE, np.uint64)
    n_found = 0
    for row in range(indptr.size - 1):
        for i in range(indptr[row], indptr[row + 1]):
            for j in range(indptr[row], i):
                if fields[indices[i]] != fields[indices[j]]:
                    continue
                low = np.uint64(min(features[indices[i]], features[indices[j]]))
                high = np.uint64(max(features[indices[i]], features[indices[j]]))
                key = (low << np.uint64(32)) | high
                at = _place_of(table, key)
                if table[at] == key:
                    continue
                table[at] = key
                n_found += 1
                if n_found > most:
                    return np.sort(table[table != _NONE])
                if 2 * n_found > table.size:
                    known = table[table != _NONE]
                    table = np.full(2 * table.size, _NONE, np.uint64)
                    for each in known:
                        table[_place_of(table, each)] = each
    return np.sort(table[table != _NONE])
