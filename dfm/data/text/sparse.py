"""Lines of libsvm, `label index:value …` (of SVMrank `label qid:group index:value …`), and of libffm, `label
field:index:value …`.

The entries of a line become a map of index to value: one column of libsvm, one per field of libffm. A comment begins
with #. Values are kept as float32, as training keeps them; labels as float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.compilation import compiled, part
from dfm.data.text.parsed import (
    FEATURES,
    GROUP,
    IS_BLANK,
    IS_ROW,
    LABEL,
    Parsed,
    faults_of,
    is_beyond,
    list_encodings,
    row_lines,
    weighted_lists,
    without_lines,
)
from dfm.data.text.scanning import (
    COLON,
    HARD,
    HASH,
    NONE,
    address,
    byte_at,
    is_blank,
    line_starts,
    number,
    read_hard,
    whole_number,
    word_start,
)
from dfm.errors import DataError

_LABEL, _INDEX, _VALUE, _FIELD, _GROUP, _BEYOND = range(2, 8)
MOST_FIELDS = 1 << 16
_KEYS = 1 << 62
"""Beyond every index of 18 digits."""
REASONS = {
    _LABEL: "the label is no number",
    _INDEX: "expected index:value, an index being a whole number of at most 18 digits",
    _VALUE: "the value is no finite number",
    _FIELD: f"expected field:index:value, a field being a whole number below {MOST_FIELDS}",
    _GROUP: "qid: without a whole number, or the first line of the data has none",
    _BEYOND: "a number is beyond what float32 holds",
}
_Q, _I, _D = b"qid"


class _Lines(NamedTuple):
    """The lines of a block: labels float64, groups int64, status uint8, wrong int64 (the place of the word at fault),
    each [n_lines]; offsets int64[n_lines + 1] of their entries; fields int32, keys int64, values float64, each
    [n_entries]. hard int64[n_hard, 3]: numbers that Arrow has to read, from, to, and the entry (-1 - line: its label).
    """

    labels: NDArray[np.float64]
    groups: NDArray[np.int64]
    status: NDArray[np.uint8]
    wrong: NDArray[np.int64]
    offsets: NDArray[np.int64]
    fields: NDArray[np.int32]
    keys: NDArray[np.int64]
    values: NDArray[np.float64]
    hard: NDArray[np.int64]


def _room(n_lines: int, capacity: int) -> _Lines:
    per_line = (
        np.empty(n_lines),
        np.zeros(n_lines, np.int64),
        np.empty(n_lines, np.uint8),
        np.zeros(n_lines, np.int64),
    )
    entries = (np.zeros(capacity, np.int32), np.empty(capacity, np.int64), np.empty(capacity))
    return _Lines(*per_line, np.empty(n_lines + 1, np.int64), *entries, np.empty((n_lines + capacity, 3), np.int64))


@part
def _ends(data, at, end):  # type: ignore[no-untyped-def]
    """Whether no word goes on here."""
    return at >= end or is_blank(byte_at(data, at)) or byte_at(data, at) == HASH


@part
def _is_group(data, at, end):  # type: ignore[no-untyped-def]
    """Whether the word begins with qid and a colon."""
    if at + 3 >= end or byte_at(data, at) != _Q:
        return False
    return byte_at(data, at + 1) == _I and byte_at(data, at + 2) == _D and byte_at(data, at + 3) == COLON


@part
def _numbered(data, at, end, below, fault):  # type: ignore[no-untyped-def]
    """A whole number before a colon, the place behind the colon, and whether it is at fault."""
    found, at = whole_number(data, at, end)
    if found < 0 or found >= below or at >= end or byte_at(data, at) != COLON:
        return found, at, fault
    return found, at + 1, IS_ROW


@part
def _entry(data, at, end, has_fields):  # type: ignore[no-untyped-def]
    """An entry: whether it is at fault, field, index, where its value begins, value, kind of the number, the place
    behind.
    """
    field, fault = np.int64(0), IS_ROW
    if has_fields:
        field, at, fault = _numbered(data, at, end, MOST_FIELDS, _FIELD)
        if fault != IS_ROW:
            return fault, field, field, at, 0.0, NONE, at
    key, first, fault = _numbered(data, at, end, _KEYS, _FIELD if has_fields else _INDEX)
    if fault != IS_ROW:
        return fault, field, key, first, 0.0, NONE, first
    value, behind, kind = number(data, first, end)
    return (_VALUE if kind == NONE or not _ends(data, behind, end) else IS_ROW), field, key, first, value, kind, behind


@compiled
def _scan(block, starts, has_fields, has_groups, out):  # type: ignore[no-untyped-def]
    """Read the lines that begin at `starts` into `out`; entries of lines at fault are not kept. The number of entries,
    and of numbers for Arrow.
    """
    data = address(block)
    n, n_hard = 0, 0
    for line in range(starts.size - 1):
        out.offsets[line] = n
        end = starts[line + 1] - 1
        at = word_start(data, starts[line], end)
        if at >= end or byte_at(data, at) == HASH:
            out.status[line] = IS_BLANK
            continue
        hard_before, word = n_hard, at
        value, at, kind = number(data, at, end)
        out.labels[line] = value
        fault = _LABEL if kind == NONE or not _ends(data, at, end) else IS_ROW
        if kind == HARD:
            out.hard[n_hard, 0], out.hard[n_hard, 1], out.hard[n_hard, 2] = word, at, -1 - line
            n_hard += 1
        while fault == IS_ROW:
            at = word_start(data, at, end)
            if at >= end or byte_at(data, at) == HASH:
                break
            word = at
            if _is_group(data, at, end):
                found, at = whole_number(data, at + 4, end)
                fault = IS_ROW if has_groups and found >= 0 and _ends(data, at, end) else _GROUP
                out.groups[line] = found
                continue
            fault, field, key, first, value, kind, at = _entry(data, at, end, has_fields)
            out.fields[n], out.keys[n], out.values[n] = field, key, value
            if kind == HARD:
                out.hard[n_hard, 0], out.hard[n_hard, 1], out.hard[n_hard, 2] = first, at, n
                n_hard += 1
            n += 1
        out.status[line], out.wrong[line] = fault, word
        if fault != IS_ROW:
            n, n_hard = out.offsets[line], hard_before
    out.offsets[starts.size - 1] = n
    return n, n_hard


@dataclass(frozen=True)
class SparseReader:
    """libsvm, or with has_fields libffm, whose field numbers are `fields`. has_groups: whether lines have a qid."""

    has_fields: bool = False
    has_groups: bool = False
    fields: tuple[int, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns of lists."""
        return [f"field_{number}" for number in self.fields] if self.has_fields else [FEATURES]

    @property
    def schema(self) -> pa.Schema:
        """Label, group where there is one, lists."""
        groups = [pa.field(GROUP, pa.int64())] if self.has_groups else []
        lists = [pa.field(name, pa.map_(pa.int64(), pa.float32())) for name in self.columns]
        return pa.schema([pa.field(LABEL, pa.float64()), *groups, *lists])

    @property
    def surveys(self) -> bool:
        """Whether there are fields to be found."""
        return self.has_fields

    @property
    def encodings(self) -> Mapping[str, Any]:
        """Those of lists."""
        return list_encodings(self.columns, keys_are_text=False)

    def sights(self, block: NDArray[np.uint8]) -> set[Any]:
        """Numbers of the fields in a block."""
        lines, _, _ = self._lines(block)
        return set(np.flatnonzero(np.bincount(lines.fields)).tolist()) if lines.fields.size else set()

    def knowing(self, sights: set[Any]) -> SparseReader:
        """The reader of these fields."""
        return dataclasses.replace(self, fields=tuple(sorted(sights)))

    def _lines(self, block: NDArray[np.uint8]) -> tuple[_Lines, NDArray[np.int64], int]:
        """All that a block holds, only the entries that are there; where its lines begin; how many are blank."""
        starts = line_starts(block)
        out = _room(len(starts) - 1, int(np.count_nonzero(block == COLON)) + 1)
        n, n_hard = _scan(block, starts, self.has_fields, self.has_groups, out)
        out = out._replace(fields=out.fields[:n], keys=out.keys[:n], values=out.values[:n], hard=out.hard[:n_hard])
        _take_hard(block, out)
        return _without_far(out, starts), starts, int(np.count_nonzero(out.status == IS_BLANK))

    def parse(self, block: NDArray[np.uint8]) -> Parsed:
        """The rows of a block."""
        lines, starts, n_blank = self._lines(block)
        is_row = lines.status == IS_ROW
        lists = weighted_lists(
            row_lines(lines.status, lines.offsets),
            self._places(lines.fields) if self.has_fields else lines.fields,
            len(self.columns),
            pa.array(lines.keys),
            lines.values.astype(np.float32),
        )
        groups = [pa.array(lines.groups[is_row])] if self.has_groups else []
        batch = pa.RecordBatch.from_arrays([pa.array(lines.labels[is_row]), *groups, *lists], schema=self.schema)
        faults = faults_of(block, starts, lines.status, lines.wrong, REASONS)
        return Parsed(batch, len(starts) - 1, n_blank, faults)

    def _places(self, fields: NDArray[np.int32]) -> NDArray[np.int32]:
        """The number of the column of each entry, int32[n_entries]. DataError where a field has none."""
        places = np.full(MOST_FIELDS, -1, np.int32)
        places[list(self.fields)] = np.arange(len(self.fields), dtype=np.int32)
        found = places[fields]
        if found.size and found.min() < 0:
            raise DataError(
                f"field {fields[found.argmin()]} came up while the data were converted; leave them as they are"
            )
        return found


def _take_hard(block: NDArray[np.uint8], out: _Lines) -> None:
    """Put the numbers that Arrow has to read into `out`."""
    if len(out.hard):
        found, targets = read_hard(block, out.hard[:, 0], out.hard[:, 1]), out.hard[:, 2]
        is_label = targets < 0
        out.values[targets[~is_label]] = found[~is_label]
        out.labels[-1 - targets[is_label]] = found[is_label]


def _without_far(lines: _Lines, starts: NDArray[np.int64]) -> _Lines:
    """The lines, those with a number beyond float32 marked as faults, whose entries go."""
    far = is_beyond(lines.values)
    rows = lines.status == IS_ROW
    is_far = rows & is_beyond(np.where(rows, lines.labels, 0.0))
    if not far.any() and not is_far.any():
        return lines
    is_far[np.repeat(np.arange(len(rows)), np.diff(lines.offsets))[far]] = True
    lines.status[is_far], lines.wrong[is_far] = _BEYOND, starts[:-1][is_far]
    keep, offsets = without_lines(~is_far, lines.offsets)
    return lines._replace(offsets=offsets, fields=lines.fields[keep], keys=lines.keys[keep], values=lines.values[keep])
