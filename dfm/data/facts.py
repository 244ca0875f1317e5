"""Facts about the columns of shards, by their footers and a sample that is the same for the same data.

The sample is some runs of rows, evenly spread over all. How many distinct values a column has in all rows is estimated
from how many the sample has once and twice (Chao 1984), which is a lower bound where values are very rare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.arrow_types import as_moments, decoded, is_moment, plain, storage_type, type_of_moments
from dfm.data.columns import parse_numbers
from dfm.data.footers import Columns, columns_of
from dfm.data.lists import lists_of
from dfm.data.parquet import Shard, Unit, read_unit
from dfm.errors import DataError

SAMPLE_ROWS = 200_000
_RUNS = 20
SEPARATORS = ("|", ";")
"""Signs that part the elements of a list that is text."""
PLACEHOLDERS = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "none", "\\N", "-", "?", "unknown")
"""Texts that look like no value."""
_MOST_WORDS = 5
"""Values of a column that are shown or looked into one by one."""


@dataclass(frozen=True)
class ColumnFacts:
    """A column in a sample.

    kind: the word for its type (`arrow_types.column_kind`). n_missing: nulls, NaN, empty texts; of lists, empty ones.
    n_distinct: in the sample; n_values: estimated for all rows.
    Of lists both are of elements, of which a row has `length` on average. top: the most frequent values, as text.
    numbers: all values that are finite numbers or text of one, ascending, float64; n_words: how many are no number;
    n_nan: how many are NaN; n_infinite: how many are infinite. moments: earliest, at nine tenths, at 19 twentieths and
    latest, as text, where the column holds moments or text of them, placeholders aside; no_moment: a text that is none.
    parts: of text, by separator, the share of distinct values that have it. placeholders: texts among the values that
    look like none; they do not count as words.
    """

    name: str
    kind: str
    n_rows: int
    n_missing: int
    n_distinct: int
    n_values: int
    top: tuple[str, ...]
    length: float = 0.0
    numbers: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    n_words: int = 0
    n_nan: int = 0
    n_infinite: int = 0
    moments: tuple[str, str, str, str] | None = None
    no_moment: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    mean_characters: float = 0.0
    placeholders: tuple[str, ...] = ()

    @property
    def n_present(self) -> int:
        """Rows of the sample that have a value."""
        return self.n_rows - self.n_missing

    @property
    def missing(self) -> float:
        """The share of rows without a value."""
        return self.n_missing / max(self.n_rows, 1)

    @property
    def are_numbers(self) -> bool:
        """Whether nearly all values are numbers, whatever the type."""
        return bool(len(self.numbers)) and self.n_words * 1000 <= self.n_present

    @property
    def are_whole(self) -> bool:
        """Whether all numbers are whole ones."""
        return bool(np.all(self.numbers == np.floor(self.numbers)))


@dataclass(frozen=True)
class DataFacts:
    """Facts about all columns, in their order; set_aside: columns that become no feature by themselves, with why."""

    shards: Sequence[Shard]
    columns: Mapping[str, ColumnFacts]
    set_aside: Mapping[str, str]

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)


def facts_of(shards: Sequence[Shard], options: Mapping[str, Any] | None = None) -> DataFacts:
    """Facts about the columns of shards."""
    known = columns_of(shards, options)
    names = [name for name in dict.fromkeys(known.names) if not known.set_aside.get(name, "").endswith(" has none")]
    batches = list(_sample([shard for shard in shards if shard.n_rows], names, options))
    n_rows = sum(shard.n_rows for shard in shards)
    found = {}
    for name in names:
        arrays = [batch.column(name) for batch in batches]
        found[name] = _facts(name, known, arrays, n_rows)
    return DataFacts(shards, found, known.set_aside)


def _sample(
    shards: Sequence[Shard], columns: Sequence[str], options: Mapping[str, Any] | None
) -> Iterator[pa.RecordBatch]:
    """Rows of up to _RUNS runs, SAMPLE_ROWS of them, or all."""
    ends = np.cumsum([shard.n_rows for shard in shards])
    total = int(ends[-1])
    n_runs = 1 if total <= SAMPLE_ROWS else _RUNS
    size = min(total, SAMPLE_ROWS) // n_runs
    for run in range(n_runs):
        first = (total - size) * run // max(n_runs - 1, 1)
        for shard, end in zip(shards, ends.tolist(), strict=True):
            begin = end - shard.n_rows
            start, stop = max(first, begin), min(first + size, end)
            if start < stop:
                for batch in read_unit(Unit(shard, start - begin, stop - begin), columns, options):
                    yield batch.data


def _facts(name: str, known: Columns, arrays: Sequence[pa.Array], n_all: int) -> ColumnFacts:
    kind = known.kinds[name]
    if kind == "list":
        return _of_lists(name, arrays, n_all)
    texts = [_texts(array) for array in arrays]
    counted = _counts(texts)
    n_rows = sum(map(len, arrays))
    n_missing = n_rows - sum(counted.values())
    words = [*counted] if kind in ("string", "dictionary") else []
    found = _numbers(name, kind, arrays)
    placeholders = tuple(text for text in PLACEHOLDERS if text in words and not _is_number(text))
    telling = {text: count for text, count in counted.items() if text not in placeholders}
    return ColumnFacts(
        name,
        kind,
        n_rows,
        n_missing,
        len(counted),
        _estimate(counted.values(), n_rows, n_all),
        tuple(sorted(counted, key=lambda text: (-counted[text], text))[:_MOST_WORDS]),
        numbers=found.finite,
        n_words=found.n_words - sum(counted[text] for text in placeholders),
        n_nan=found.n_nan,
        n_infinite=found.n_infinite,
        moments=_moments(arrays, telling),
        no_moment=next((text for text in telling if not re.match(_ISO, text)), ""),
        parts={sign: sum(sign in text for text in words) / max(len(words), 1) for sign in SEPARATORS},
        mean_characters=sum(map(len, words)) / max(len(words), 1),
        placeholders=placeholders,
    )


def _is_number(text: str) -> bool:
    """Whether a placeholder is read as a number, NaN."""
    return text.lower() == "nan"


def _texts(array: pa.Array) -> pa.Array:
    """Values as text; null where there is none, NaN, or empty text."""
    array = plain(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    try:
        texts = decoded(array).cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.large_string())
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _counts(texts: Sequence[pa.Array]) -> dict[str, int]:
    """Occurrences of each value."""
    counted = pc.value_counts(pa.chunked_array(texts, pa.large_string()).drop_null())
    return dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))


def _estimate(counts: Any, n_rows: int, n_all: int) -> int:
    """Distinct values in all rows, given how often each occurs in a sample; the number itself where that is all."""
    found = np.fromiter(counts, np.int64)
    if n_rows >= n_all or not len(found):
        return len(found)
    once, twice = int((found == 1).sum()), int((found == 2).sum())
    unseen = once * (once - 1) / 2 if not twice else once**2 / (2 * twice)
    return int(min(len(found) + unseen, len(found) - once + once * n_all / n_rows))


class _Numbers(NamedTuple):
    """All finite numbers of a column in order, how many values are no number, NaN, infinite."""

    finite: NDArray[np.float64]
    n_words: int = 0
    n_nan: int = 0
    n_infinite: int = 0


def _numbers(name: str, kind: str, arrays: Sequence[pa.Array]) -> _Numbers:
    if kind not in ("int", "float", "string", "dictionary", "bool"):
        return _Numbers(np.zeros(0))
    parts, n_words, n_nan, n_infinite = [np.zeros(0)], 0, 0, 0
    for array in arrays:
        try:
            values, present, unparsed = parse_numbers(array, name)
        except DataError:
            return _Numbers(np.zeros(0))
        n_words += int(unparsed.sum())
        found = values[present & ~unparsed]
        n_nan += int(np.isnan(found).sum())
        n_infinite += int(np.isinf(found).sum())
        parts.append(found[np.isfinite(found)])
    return _Numbers(np.sort(np.concatenate(parts)), n_words, n_nan, n_infinite)


_MIDNIGHT = "T00:00:00"
_ISO = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"


def _moments(arrays: Sequence[pa.Array], counted: Mapping[str, int]) -> tuple[str, str, str, str] | None:
    """Some quantiles of moments, or of text that has the form of moments."""
    kinds = {storage_type(array.type) for array in arrays}
    if all(is_moment(kind) and not pa.types.is_time(kind) for kind in kinds):
        kind = type_of_moments(kinds)
        return _of_moments(pa.chunked_array([as_moments(array.drop_null(), kind) for array in arrays], kind))
    words = [*counted]
    if not words or not bool(pc.all(pc.match_substring_regex(pa.array(words), _ISO)).as_py()):
        return None
    ordered = sorted(words)
    return _quantiles(ordered, np.array([counted[word] for word in ordered]))


def _of_moments(moments: pa.ChunkedArray) -> tuple[str, str, str, str] | None:
    """The same of moments without nulls; to the microsecond, and of midnights the days. None beyond the year 9999."""
    if pa.types.is_timestamp(moments.type):
        moments = moments.cast(pa.timestamp("us", moments.type.tz), safe=False)
    counted = pc.value_counts(moments)
    order = pc.sort_indices(counted.field(0))
    try:
        texts = [value.as_py().isoformat() for value in counted.field(0).take(order)]
    except (ValueError, OverflowError):
        return None
    if all(text.endswith(_MIDNIGHT) for text in texts):
        texts = [text.removesuffix(_MIDNIGHT) for text in texts]
    return _quantiles(texts, counted.field(1).take(order).to_numpy()) if texts else None


def _quantiles(words: Sequence[str], counts: NDArray[np.int64]) -> tuple[str, str, str, str]:
    """The first of ascending values, the ones at nine tenths and at 19 twentieths, the last."""
    ends = np.cumsum(counts)
    at_tenth, at_twentieth = (words[int(np.searchsorted(ends, share * ends[-1]))] for share in (0.9, 0.95))
    return words[0], at_tenth, at_twentieth, words[-1]


def _of_lists(name: str, arrays: Sequence[pa.Array], n_all: int) -> ColumnFacts:
    """Facts about a column of lists: its elements."""
    lists = [lists_of(array, name, "") for array in arrays]
    n_rows = sum(map(len, arrays))
    lengths = np.concatenate([np.diff(one.offsets) for one in lists])
    counted = _counts([_texts(one.elements) for one in lists])
    return ColumnFacts(
        name,
        "list",
        n_rows,
        int((lengths == 0).sum()),
        len(counted),
        _estimate(counted.values(), n_rows, n_all),
        tuple(sorted(counted, key=lambda text: (-counted[text], text))[:_MOST_WORDS]),
        length=float(lengths.mean()) if n_rows else 0.0,
    )
