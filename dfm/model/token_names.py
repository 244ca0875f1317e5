"""Names of a model's features.

A hash cannot be turned round: buckets of numbers are named by what they hold, all other features by rows in which they
occur.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import hashing
from dfm.data.arrow_types import plain
from dfm.data.columns import LOOKED_UP, feature_column, list_column, parse_numbers
from dfm.data.lists import Lists
from dfm.data.schema import Field
from dfm.data.transforms import NOTHING_KNOWN, TRANSFORMS
from dfm.model.fm_model import FMModel
from dfm.model.tokens import MISSING, shown

RARE, PER_UNIT = "(rare)", "(per unit)"
"""Names of what stands for no value of its own, as `MISSING` does; a number that is taken as it is weighs w a unit."""


class TokenNames:
    """Names of features, by their row in the parameter table: of buckets at once, of others as rows are shown."""

    def __init__(self, model: FMModel) -> None:
        self._model, self.names = model, dict[int, str]()
        self._order = np.argsort(model.vocabulary.ids)
        self._sorted = model.vocabulary.ids[self._order]
        for entry in model.schema.fields:
            self._name_known(entry)

    def add(self, batch: pa.RecordBatch) -> None:
        """Name what occurs in some rows, which have the columns of the features."""
        for entry in self._model.schema.fields:
            if entry.kind in ("categorical", "list", "cross"):
                rows = self._distinct(entry, batch)
                ids, good = self._model.tokens.indices(entry, rows)
                names = zip(*map(self._names, rows.schema.names, rows.columns), strict=True)
                kept = [" & ".join(name) for name, is_good in zip(names, good, strict=True) if is_good]
                self._set(entry, ids, kept)

    def of_field(self, entry: Field) -> dict[int, str]:
        """Rows of a field that have names."""
        fields = self._model.vocabulary.fields
        return {row: name for row, name in self.names.items() if fields[row] == entry.index}

    def _name_known(self, entry: Field) -> None:
        model, bits = self._model, self._model.vocabulary.hash_bits
        rare = int(model.vocabulary.rare[entry.index])
        if rare >= 0:
            self.names[rare] = RARE
        if entry.kind == "vector":
            self._set(entry, np.arange(len(entry.columns), dtype=np.uint32), list(entry.columns))
            return
        missing = hashing.token_index(entry.name, hashing.MISSING, bits)
        if entry.bucketed:
            known = model.statistics.get(entry.name, NOTHING_KNOWN)
            names = TRANSFORMS[entry.transform].names(known)
            self._set(entry, hashing.bucket_table(entry.name, len(names), bits), [MISSING, *names[1:]])
        elif entry.kind == "numeric":
            present = hashing.token_index(entry.name, hashing.PRESENT, bits)
            self._set(entry, np.array([missing, present], np.uint32), [MISSING, PER_UNIT])
        elif entry.kind != "cross":
            self._set(entry, np.array([missing], np.uint32), [MISSING])

    def _set(self, entry: Field, ids: NDArray[np.uint32], names: Sequence[str]) -> None:
        """Give the rows of these ids their names; the first name of a row stays."""
        if not len(self._sorted):
            return
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        rows, found = self._order[places], self._sorted[places] == ids
        own = self._model.vocabulary.fields[rows] == entry.index
        for at in np.flatnonzero(found & own):
            self.names.setdefault(int(rows[at]), names[int(at)])

    def _names(self, column: str, array: pa.Array) -> list[str]:
        entry = self._model.tokens.field(column)
        if not entry.bucketed:
            return [shown(value) for value in array.to_pylist()]
        values, present, _ = parse_numbers(array, column, self._model.schema.numbers)
        transform, known = TRANSFORMS[entry.transform], self._model.statistics.get(column, NOTHING_KNOWN)
        names = [MISSING, *transform.names(known)[1:]]
        return [names[code] for code in transform.codes(values, present, known)]

    def _distinct(self, entry: Field, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Distinct values of a field's columns, those of a cross side by side; of lists, their elements. Texts that
        mean a missing value are looked up.
        """
        rows = np.arange(batch.num_rows)
        arrays: dict[str, pa.Array] = {}
        for column in entry.columns:
            if self._model.tokens.field(column).kind != "list":
                values, _ = feature_column(batch, column, self._model.schema)
                arrays[column] = _groupable(values).take(pa.array(rows))
                continue
            starts, lengths, elements = _elements(list_column(batch, column, self._model.schema))
            again = np.repeat(np.arange(len(rows)), lengths[rows])
            arrays = {name: array.take(pa.array(again)) for name, array in arrays.items()}
            arrays[column] = elements.take(pa.array(_runs(starts[rows], lengths[rows])))
            rows = rows[again]
        table = pa.table(arrays).group_by(list(arrays), use_threads=False).aggregate([])
        found = {name: table.column(name).combine_chunks() for name in arrays}
        fields = [pa.field(name, array.type, metadata=LOOKED_UP) for name, array in found.items()]
        return pa.RecordBatch.from_arrays([*found.values()], schema=pa.schema(fields))


def _elements(found: Lists) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array]:
    """Places of each row's first element, how many it has (int64[n_rows] each), and all elements. The last is missing:
    the one of an empty list.
    """
    elements = pa.concat_arrays([_groupable(found.elements), pa.nulls(1, _groupable(found.elements).type)])
    lengths = np.diff(found.offsets)
    return np.where(lengths > 0, found.offsets[:-1], len(elements) - 1), np.maximum(lengths, 1), elements


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of runs one after the other: lengths[i] of them from starts[i] on."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)


def _groupable(array: pa.Array) -> pa.Array:
    """Plain values, which Arrow can tell apart."""
    array = plain(array)
    array = plain(array.dictionary_decode()) if pa.types.is_dictionary(array.type) else array
    return array.cast(pa.float32()) if pa.types.is_float16(array.type) else array
