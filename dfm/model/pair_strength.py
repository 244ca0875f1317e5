"""Strength of pairs of fields: how much of the score, either sign, two fields make together in the mean of some rows.

For a row, the term of fields a and b is Σ x_i x_j <f_i, s_j> over its features i of a and j of b (see `entries`): what
a model says of the two that neither says alone, nor with a third. Of all families alike, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.matrices import is_vector
from dfm.data.schema import ResolvedSchema
from dfm.kernels.families.registry import family_of
from dfm.model.entries import Entries, Floats, Scorer, entries_of, sides

PAIR_ROWS = 1_000
"""Rows that strengths are measured on, spread over the data, where there are more: a field-aware machine of 39 fields
takes about 3 ms for each, and the mean of a thousand is known to a few hundredths of itself."""
MOST_PAIRS = 1_000
"""Pairs that are told, the strongest."""
MOST_FIELDS = 500
"""Fields up to which pairs are measured: their terms go with the square of the fields, and so do the sums that every
task hands on. A thousand rows of so many take about 2 s."""
_NUMBERS_AT_ONCE = 1 << 22
"""Numbers of one side, or of terms, that are in memory at a time."""


def has_pairs(model: Scorer) -> bool:
    """Whether any two features of the model make a term by themselves."""
    has_sides = family_of(model.table.layout.family).sides is not None
    return bool(has_sides and model.table.n_factored and model.table.layout.n_factors)


def n_paired(model: Scorer) -> int:
    """The number of fields, of which every pair is measured; 0 where none is."""
    return 0 if left_out(model.schema) or not has_pairs(model) else len(model.schema.fields)


def left_out(schema: ResolvedSchema) -> str:
    """The reason why no pair of these fields is measured; "" where they are."""
    if is_vector(schema):
        return "the columns of a matrix are one field, so that there are no pairs of fields to be measured"
    n_fields = len(schema.fields)
    if n_fields <= MOST_FIELDS:
        return ""
    return f"pairs of {n_fields:,} fields are too many to be measured; those of up to {MOST_FIELDS} are"


def pair_sums(model: Scorer, data: pa.RecordBatch, weights: Floats) -> Floats:
    """Σ weight |term| of every two fields over good rows, float64[n_fields, n_fields]. weights float64[n_rows].

    On the diagonal are the entries of one field, of a list.
    """
    fields = model.schema.fields
    n_fields, entries = len(fields), entries_of(model, data, fields).merged()
    width = sides(model, entries.features[:0])[0].shape[1]
    at_once = max(1, _NUMBERS_AT_ONCE // (n_fields * max(width, n_fields)))
    total = np.zeros((n_fields, n_fields))
    for start in range(0, entries.n_rows, at_once):
        stop = min(start + at_once, entries.n_rows)
        terms = _terms(model, entries, start, stop)
        total += np.tensordot(weights[start:stop], np.abs(terms, out=terms), 1)
    return total


def _terms(model: Scorer, entries: Entries, start: int, stop: int) -> Floats:
    """The terms of every two fields in the rows [start, stop), float64[n_rows, n_fields, n_fields]."""
    n_fields, n_rows = len(model.schema.fields), stop - start
    low, high = np.searchsorted(entries.rows, [start, stop])
    places = (entries.rows[low:high] - start) * n_fields + entries.fields[low:high]
    ours, theirs = (side * entries.values[low:high, None] for side in sides(model, entries.features[low:high]))
    first, second = (np.zeros((n_rows * n_fields, ours.shape[1])) for _ in range(2))
    np.add.at(first, places, ours)
    np.add.at(second, places, theirs)
    terms: Floats = first.reshape(n_rows, n_fields, -1) @ second.reshape(n_rows, n_fields, -1).transpose(0, 2, 1)
    squares = np.bincount(places, np.einsum("ed,ed->e", ours, theirs), n_rows * n_fields)
    meet = np.bincount(places, minlength=n_rows * n_fields) > 1  # one entry leaves nothing but rounding
    diagonal = np.arange(n_fields)
    within = (terms[:, diagonal, diagonal].reshape(-1) - squares) / 2
    terms[:, diagonal, diagonal] = np.where(meet, within, 0.0).reshape(n_rows, n_fields)
    return terms


def pair_records(sums: Floats, weight: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """JSON-ready records of pairs of fields, the strongest first: first, second, strength (the mean absolute term, in
    the unit of scores). Pairs without any term are left out.
    """
    found = [
        {"first": names[a], "second": names[b], "strength": float(sums[a, b] / weight)}
        for a, b in zip(*np.nonzero(np.triu(sums)), strict=True)
    ]
    return sorted(found, key=lambda record: (-record["strength"], record["first"], record["second"]))[:MOST_PAIRS]


def strength_matrix(records: Sequence[dict[str, Any]], names: Sequence[str]) -> Floats:
    """Strengths of pairs of these fields, float64[n, n]; 0 where none is told."""
    places, matrix = {name: at for at, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for record in records:
        a, b = places.get(record["first"]), places.get(record["second"])
        if a is not None and b is not None:
            matrix[a, b] = matrix[b, a] = record["strength"]
    return matrix
