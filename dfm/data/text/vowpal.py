"""Lines of Vowpal Wabbit: `label [importance [initial]] ['tag]|namespace[:weight] name[:value] … |namespace …`.

The features of a namespace become a map of name to value (1 where none is written), values times the namespace's
weight: one column per namespace. Importances become the column `weight`. Tags and initial predictions are left out.
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
    IS_BLANK,
    IS_ROW,
    LABEL,
    WEIGHT,
    Parsed,
    faults_of,
    is_beyond,
    list_encodings,
    row_lines,
    weighted_lists,
    without_lines,
)
from dfm.data.text.scanning import (
    BLANK,
    COLON,
    EXACT,
    HARD,
    NONE,
    PIPE,
    QUOTE,
    TAB,
    address,
    byte_at,
    is_blank,
    line_starts,
    lines_of_no_utf8,
    number,
    read_hard,
    texts,
    word_end,
    word_start,
)

_NO_PIPE, _LABEL, _IMPORTANCE, _HEAD, _SCALE, _MANY, _NAME, _VALUE, _BEYOND, _NO_TEXT = range(2, 12)
MOST_NAMESPACES = 1 << 12
REASONS = {
    _NO_PIPE: "there is no | behind the label",
    _LABEL: "there is no label, or it is no number",
    _IMPORTANCE: "the importance is no number from 0 on",
    _HEAD: "expected at most label, importance, initial prediction and tag before the first |",
    _SCALE: "the weight of the namespace is no number of up to 18 digits",
    _MANY: f"there are more than {MOST_NAMESPACES} namespaces",
    _NAME: "a feature without a name",
    _VALUE: "the value of the feature is no finite number",
    _BEYOND: "a number is beyond what float32 holds",
    _NO_TEXT: "the line is no UTF-8 text",
}
_HAS_IMPORTANCE = b""
"""In what a survey saw: that a line has an importance. No namespace is called so there: names keep a | in front."""


class _Lines(NamedTuple):
    """The lines of a block: labels and weights float64, status uint8, wrong int64 (the place of the word at fault),
    each [n_lines]; offsets int64[n_lines + 1] of their entries; of these columns int32, starts and ends of the names
    int64, values float64, each [n_entries]. names int64[n_namespaces, 2]: where the names of the columns stand.
    hard int64[n_hard, 3]: numbers that Arrow has to read, from, to, and the entry (-1 - 2 * line: its label, one
    less: its weight). An entry's value is then what its namespace weighs.
    """

    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    status: NDArray[np.uint8]
    wrong: NDArray[np.int64]
    offsets: NDArray[np.int64]
    columns: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    values: NDArray[np.float64]
    names: NDArray[np.int64]
    hard: NDArray[np.int64]


def _room(n_lines: int, capacity: int) -> _Lines:
    per_line = (np.zeros(n_lines), np.ones(n_lines), np.empty(n_lines, np.uint8), np.zeros(n_lines, np.int64))
    entries = (
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity),
    )
    names, hard = np.empty((MOST_NAMESPACES, 2), np.int64), np.empty((2 * n_lines + capacity, 3), np.int64)
    return _Lines(*per_line, np.empty(n_lines + 1, np.int64), *entries, names, hard)


@part
def _ends(data, at, end):  # type: ignore[no-untyped-def]
    """Whether no word goes on here."""
    return at >= end or is_blank(byte_at(data, at)) or byte_at(data, at) == PIPE


@part
def _name_end(data, at, end):  # type: ignore[no-untyped-def]
    """The place behind a name: of a colon, a blank or a |."""
    while not _ends(data, at, end) and byte_at(data, at) != COLON:
        at += 1
    return at


@part
def _same(data, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two pieces of the buffer hold the same bytes."""
    at = 0
    while at < length and byte_at(data, a + at) == byte_at(data, b + at):
        at += 1
    return at == length


@compiled
def _column_of(data, start, end, names, n_names, hint):  # type: ignore[no-untyped-def]
    """The number of the column of a name, n_names where it is new; the next one is tried first, as lines are alike."""
    for step in range(n_names):
        column = (hint + 1 + step) % n_names
        first, last = names[column, 0], names[column, 1]
        if last - first == end - start and _same(data, first, start, end - start):
            return column
    return n_names


@part
def _head_word(data, at, pipe):  # type: ignore[no-untyped-def]
    """The number of a word before the first |: value, kind, the place behind; kind -1 where it is a tag."""
    end = word_end(data, at, pipe)
    if byte_at(data, at) == QUOTE or end == pipe:
        return 0.0, -1, end
    value, behind, kind = number(data, at, end)
    return value, (kind if behind == end else NONE), end


@part
def _scale(data, at, end):  # type: ignore[no-untyped-def]
    """The weight of a namespace, behind its name, whether it is at fault, the place behind."""
    if at >= end or byte_at(data, at) != COLON:
        return 1.0, IS_ROW, at
    value, behind, kind = number(data, at + 1, end)
    return value, (IS_ROW if kind == EXACT and _ends(data, behind, end) else _SCALE), behind


@part
def _feature(data, at, end):  # type: ignore[no-untyped-def]
    """A feature: whether it is at fault, the end of its name, where its value begins, value, kind, the place behind."""
    name_end = _name_end(data, at, end)
    if name_end == at:
        return _NAME, name_end, at, 0.0, NONE, at
    if name_end >= end or byte_at(data, name_end) != COLON:
        return IS_ROW, name_end, name_end, 1.0, EXACT, name_end
    value, behind, kind = number(data, name_end + 1, end)
    fault = _VALUE if kind == NONE or not _ends(data, behind, end) else IS_ROW
    return fault, name_end, name_end + 1, value, kind, behind


@part
def _pipe(data, at, end):  # type: ignore[no-untyped-def]
    while at < end and byte_at(data, at) != PIPE:
        at += 1
    return at


@compiled
def _scan(block, starts, out):  # type: ignore[no-untyped-def]
    """Read the lines that begin at `starts` into `out`; entries of lines at fault are not kept. Numbers of entries, of
    namespaces, of numbers for Arrow, and of lines with an importance.
    """
    data = address(block)
    n, n_names, n_hard, n_weighted, column = 0, 0, 0, 0, 0
    for line in range(starts.size - 1):
        out.offsets[line] = n
        end = starts[line + 1] - 1
        at = word_start(data, starts[line], end)
        if at >= end:
            out.status[line] = IS_BLANK
            continue
        hard_before, word, n_words, pipe = n_hard, at, 0, _pipe(data, at, end)
        fault = _NO_PIPE if pipe >= end else IS_ROW
        while fault == IS_ROW:
            at = word_start(data, at, pipe)
            if at >= pipe:
                break
            word = at
            value, kind, at = _head_word(data, at, pipe)
            if kind < 0:
                break
            if kind == NONE or (n_words == 1 and value < 0) or n_words == 3:
                fault = _LABEL if n_words == 0 else _IMPORTANCE if n_words == 1 else _HEAD
                break
            if n_words == 0:
                out.labels[line] = value
            if n_words == 1:
                out.weights[line] = value
                n_weighted += 1
            if kind == HARD and n_words < 2:
                out.hard[n_hard, 0], out.hard[n_hard, 1], out.hard[n_hard, 2] = word, at, -1 - 2 * line - n_words
                n_hard += 1
            n_words += 1
        if fault == IS_ROW and n_words == 0:
            fault = _LABEL
        at = pipe
        while fault == IS_ROW and at < end:
            word = at + 1
            at = _name_end(data, word, end)
            column = _column_of(data, word, at, out.names, n_names, column)
            if column == n_names:
                if n_names == MOST_NAMESPACES:
                    fault, column = _MANY, 0
                    break
                out.names[n_names, 0], out.names[n_names, 1] = word, at
                n_names += 1
            scale, fault, at = _scale(data, at, end)
            while fault == IS_ROW:
                at = word_start(data, at, end)
                if at >= end or byte_at(data, at) == PIPE:
                    break
                word = at
                fault, name_end, first, value, kind, at = _feature(data, at, end)
                out.columns[n], out.starts[n], out.ends[n] = column, word, name_end
                out.values[n] = scale if kind == HARD else value * scale
                if kind == HARD:
                    out.hard[n_hard, 0], out.hard[n_hard, 1], out.hard[n_hard, 2] = first, at, n
                    n_hard += 1
                n += 1
        out.status[line], out.wrong[line] = fault, word
        if fault != IS_ROW:
            n, n_hard = out.offsets[line], hard_before
    out.offsets[starts.size - 1] = n
    return n, n_names, n_hard, n_weighted


@dataclass(frozen=True)
class VowpalReader:
    """Vowpal Wabbit's text. namespaces: their names, as bytes; weighted: whether lines have an importance."""

    namespaces: tuple[bytes, ...] = ()
    weighted: bool = False

    @property
    def columns(self) -> list[str]:
        """Names of the columns of lists: those of the namespaces, with "_" behind where that is taken."""
        taken, found = {LABEL, WEIGHT}, []
        for name in self.namespaces:
            column = name.decode() or FEATURES
            while column in taken or (name == b"" and column.encode() in self.namespaces):
                column += "_"
            taken.add(column)
            found.append(column)
        return found

    @property
    def schema(self) -> pa.Schema:
        """Label, weight where there is one, lists."""
        weights = [pa.field(WEIGHT, pa.float32())] if self.weighted else []
        lists = [pa.field(name, pa.map_(pa.string(), pa.float32())) for name in self.columns]
        return pa.schema([pa.field(LABEL, pa.float64()), *weights, *lists])

    @property
    def surveys(self) -> bool:
        """Namespaces have to be found."""
        return True

    @property
    def encodings(self) -> Mapping[str, Any]:
        """Those of lists."""
        return list_encodings(self.columns, keys_are_text=True)

    def sights(self, block: NDArray[np.uint8]) -> set[Any]:
        """Names of the namespaces in a block, a | before each, and _HAS_IMPORTANCE."""
        lines, _, _, n_weighted = _lines(block)
        used = np.flatnonzero(np.bincount(lines.columns)).tolist() if lines.columns.size else []
        return {b"|" + name for name in _names(block, lines.names[used])} | ({_HAS_IMPORTANCE} if n_weighted else set())

    def knowing(self, sights: set[Any]) -> VowpalReader:
        """The reader of these namespaces."""
        names = tuple(sorted(name[1:] for name in sights - {_HAS_IMPORTANCE}))
        return dataclasses.replace(self, namespaces=names, weighted=_HAS_IMPORTANCE in sights)

    def parse(self, block: NDArray[np.uint8]) -> Parsed:
        """The rows of a block."""
        lines, starts, n_blank, _ = _lines(block)
        is_row = lines.status == IS_ROW
        lists = weighted_lists(
            row_lines(lines.status, lines.offsets),
            self._places(_names(block, lines.names))[lines.columns],
            len(self.namespaces),
            texts(block, lines.starts, lines.ends),
            lines.values.astype(np.float32),
        )
        weights = [pa.array(lines.weights[is_row].astype(np.float32))] if self.weighted else []
        batch = pa.RecordBatch.from_arrays([pa.array(lines.labels[is_row]), *weights, *lists], schema=self.schema)
        return Parsed(batch, len(starts) - 1, n_blank, faults_of(block, starts, lines.status, lines.wrong, REASONS))

    def _places(self, names: list[bytes]) -> NDArray[np.int32]:
        """The numbers of the columns of namespaces, int32[n]; of those that hold no row -1, which no entry meets."""
        known = {name: place for place, name in enumerate(self.namespaces)}
        return np.array([known.get(name, -1) for name in names], np.int32)


def _names(block: NDArray[np.uint8], places: NDArray[np.int64]) -> list[bytes]:
    return [block[first:last].tobytes() for first, last in places]


def _lines(block: NDArray[np.uint8]) -> tuple[_Lines, NDArray[np.int64], int, int]:
    """All that a block holds, only the entries that are there; where its lines begin; how many are blank; how many have
    an importance.
    """
    starts = line_starts(block)
    blanks = np.count_nonzero(block == BLANK) + np.count_nonzero(block == PIPE) + np.count_nonzero(block == TAB)
    out = _room(len(starts) - 1, int(blanks) + 1)
    n, n_names, n_hard, n_weighted = _scan(block, starts, out)
    entries = {key: getattr(out, key)[:n] for key in ("columns", "starts", "ends", "values")}
    out = out._replace(names=out.names[:n_names], hard=out.hard[:n_hard], **entries)
    _take_hard(block, out)
    return _without_far(out, block, starts), starts, int(np.count_nonzero(out.status == IS_BLANK)), n_weighted


def _take_hard(block: NDArray[np.uint8], out: _Lines) -> None:
    """Put the numbers that Arrow has to read into `out`."""
    if len(out.hard):
        found, targets = read_hard(block, out.hard[:, 0], out.hard[:, 1]), out.hard[:, 2]
        is_entry = targets >= 0
        out.values[targets[is_entry]] *= found[is_entry]
        lines, is_weight = np.divmod(-1 - targets[~is_entry], 2)
        out.labels[lines[is_weight == 0]] = found[~is_entry][is_weight == 0]
        out.weights[lines[is_weight == 1]] = found[~is_entry][is_weight == 1]


def _without_far(lines: _Lines, block: NDArray[np.uint8], starts: NDArray[np.int64]) -> _Lines:
    """The lines, those with a number beyond float32 or bytes that are no text marked as faults, whose entries go."""
    far, rows = is_beyond(lines.values), lines.status == IS_ROW
    is_far = rows & (is_beyond(lines.labels) | is_beyond(lines.weights) | (lines.weights < 0))
    is_far[np.repeat(np.arange(len(rows)), np.diff(lines.offsets))[far]] = True
    no_text = rows & lines_of_no_utf8(block, starts)
    if not is_far.any() and not no_text.any():
        return lines
    lines.status[is_far], lines.status[no_text] = _BEYOND, _NO_TEXT
    lines.wrong[is_far | no_text] = starts[:-1][is_far | no_text]
    keep, offsets = without_lines(~(is_far | no_text), lines.offsets)
    entries = {key: getattr(lines, key)[keep] for key in ("columns", "starts", "ends", "values")}
    return lines._replace(offsets=offsets, **entries)
