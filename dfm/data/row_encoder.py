"""A few rows of Python values to hashed rows, for serving: what `encoding` does by columns, done in one compiled call.

Columns pay for themselves from a few dozen rows on; a single row through Arrow costs a hundred times its scoring.
Whatever is not plain (lists, crosses, numbers as values, odd types, bad rows) is left to `encoding`, whose results and
errors are the definition; tests hold the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import canonical, hashing
from dfm.data.hashed_rows import HashedRows
from dfm.data.schema import SHORTEST, Field, ResolvedSchema
from dfm.data.transforms import NOTHING_KNOWN, TRANSFORMS, NumberStatistics, Transform
from dfm.storage.xxhash import xxh64

MOST_ROWS = 32
_NO_FLOATS = np.zeros(0, np.float32)
_NO_FIELDS = np.zeros(0, np.uint16)


class NotPlain(Exception):
    """These rows need the general path."""


@compiled
def _hash_tokens(data, offsets, seeds, missing, mask, out):  # type: ignore[no-untyped-def]
    """out[i] = index of data[offsets[i]:offsets[i + 1]] under seeds[i % n], missing[i % n] if empty; writes `out`."""
    for i in range(out.size):
        start, stop = offsets[i], offsets[i + 1]
        column = i % seeds.size
        out[i] = xxh64(data, start, stop, seeds[column]) & mask if stop > start else missing[column]


class RowEncoder:
    """Encodes dicts of column to list for one model."""

    def __init__(self, schema: ResolvedSchema, hash_bits: int, statistics: Mapping[str, NumberStatistics]) -> None:
        self._schema, self._hash_bits, self.columns = schema, hash_bits, schema.columns
        is_plain = all(entry.kind == "categorical" or entry.bucketed for entry in schema.fields)
        self.usable = is_plain and not schema.derived
        self._absent, self._takes_nan = frozenset(schema.missing), schema.nan == "missing"
        self._whole = frozenset(schema.integers)
        categorical = [entry for entry in schema.fields if entry.kind == "categorical"]
        numeric = [entry for entry in schema.fields if entry.kind == "numeric"]
        self._categories = [entry.name for entry in categorical]
        self._numbers = [entry.name for entry in numeric]
        self._category_places = np.array([entry.index for entry in categorical], np.int64)
        self._number_places = np.array([entry.index for entry in numeric], np.int64)
        self._seeds = np.array([hashing.column_seed(name) for name in self._categories], np.uint64)
        self._missing = np.array(
            [hashing.token_index(name, hashing.MISSING, hash_bits) for name in self._categories], np.uint32
        )
        self._buckets = self._bucketed(numeric, statistics) if self.usable else []

    def _bucketed(
        self, numeric: Sequence[Field], statistics: Mapping[str, NumberStatistics]
    ) -> list[tuple[Transform, NumberStatistics, NDArray[np.intp], list[NDArray[np.uint32]]]]:
        """Columns whose codes are made together: transform, what it knows, their places, features of their codes."""
        together: dict[tuple[str, NumberStatistics], list[int]] = {}
        for place, entry in enumerate(numeric):
            learns = TRANSFORMS[entry.transform].statistics
            known = statistics.get(entry.name, NOTHING_KNOWN) if learns else NOTHING_KNOWN
            together.setdefault((entry.transform, known), []).append(place)
        found = []
        for (name, known), places in together.items():
            n_codes = TRANSFORMS[name].n_codes(known)
            tables = [hashing.bucket_table(self._numbers[place], n_codes, self._hash_bits) for place in places]
            found.append((TRANSFORMS[name], known, np.array(places), tables))
        return found

    def encode(self, data: Mapping[str, Sequence[Any]], n_rows: int) -> HashedRows:
        """Hashed rows without labels. NotPlain where a value needs the general path."""
        n_fields = len(self._schema.fields)
        indices = np.empty((n_rows, n_fields), np.uint32)
        if self._categories:
            indices[:, self._category_places] = self._hash_categories(data, n_rows)
        if self._numbers:
            indices[:, self._number_places] = self._bucket_numbers(data, n_rows)
        indptr = np.arange(n_rows + 1, dtype=np.int64) * n_fields
        return HashedRows(indptr, indices.reshape(-1), _NO_FIELDS, _NO_FLOATS, np.zeros(n_rows, np.float32), _NO_FLOATS)

    def _integers(self, column: Sequence[Any]) -> Sequence[Any]:
        """The column with the text of integers without zeros in front; what means a missing value is seen first."""
        if str not in map(type, column):
            return column
        return [
            canonical.integer_text(text.encode()).decode() if type(text := self._given(value)) is str else text
            for value in column
        ]

    def _given(self, value: Any) -> Any:
        """The value, None where it is text that means a missing one."""
        return None if self._absent and type(value) is str and value in self._absent else value

    def _number(self, value: Any) -> float | None:
        number = _number(self._given(value))
        if number is None or math.isfinite(number):
            return number
        if self._takes_nan and math.isnan(number):
            return None
        raise NotPlain

    def _hash_categories(self, data: Mapping[str, Sequence[Any]], n_rows: int) -> NDArray[np.uint32]:
        columns = [self._integers(data[name]) if name in self._whole else data[name] for name in self._categories]
        texts = [_text(self._given(column[row])) for row in range(n_rows) for column in columns]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        joined = np.frombuffer(b"".join(texts) or b"\0", np.uint8)
        out = np.empty(len(texts), np.uint32)
        mask = np.uint64((1 << self._hash_bits) - 1)
        _hash_tokens(joined, offsets, self._seeds, self._missing, mask, out)
        return out.reshape(n_rows, len(columns))

    def _bucket_numbers(self, data: Mapping[str, Sequence[Any]], n_rows: int) -> NDArray[np.uint32]:
        parsed = [self._number(data[name][row]) for row in range(n_rows) for name in self._numbers]
        present = np.array([value is not None for value in parsed], np.bool_)
        values = np.array([0.0 if value is None else value for value in parsed], np.float64)
        if self._schema.numbers == SHORTEST:
            values = canonical.shortest(values)
        values, present = values.reshape(n_rows, -1), present.reshape(n_rows, -1)
        out = np.empty(values.shape, np.uint32)
        for transform, known, places, tables in self._buckets:
            own = slice(None) if len(self._buckets) == 1 else places
            codes = transform.codes(values[:, own].reshape(-1), present[:, own].reshape(-1), known)
            for code, place, table in zip(codes.reshape(n_rows, -1).T, places, tables, strict=True):
                out[:, place] = table[code]
        return out


def _text(value: Any) -> bytes:
    """A category as the text that is hashed; empty for a missing one."""
    kind = type(value)
    if kind is str:
        try:
            return bytes(value.encode())
        except UnicodeEncodeError as error:
            raise NotPlain from error
    if value is None:
        return b""
    if kind is int:
        return b"%d" % value
    if kind is bool:
        return b"true" if value else b"false"
    if kind is float and value.is_integer() and -(2.0**63) <= value < 2.0**63:
        return b"%d" % int(value)
    raise NotPlain


def _number(value: Any) -> float | None:
    """A number, None where it is missing."""
    if value is None or value == "":
        return None
    if type(value) not in (int, float, bool, str) or (type(value) is str and "_" in value):
        raise NotPlain
    try:
        # Bytes, as `encoding` parses them: of a string, Python would read the digits and spaces of all alphabets.
        return float(value.encode() if type(value) is str else value)
    except (ValueError, OverflowError) as error:
        raise NotPlain from error
