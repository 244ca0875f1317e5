"""CSV and its kin by Arrow's reader: a type for each column, found in a sample, and each line judged by it.

A block that Arrow refuses is halved until the lines are found that it refuses alone.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from dfm.data.text.parsed import LABEL, Fault, Parsed, shown
from dfm.data.text.scanning import RETURN, line_starts, lines_of_no_utf8
from dfm.errors import DataError, SettingsError

logger = logging.getLogger(__name__)
KINDS: dict[str, pa.DataType] = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64()}
"""Types that a column may be said to have, by name."""
CRITEO_NAMES = (LABEL, *(f"I{number}" for number in range(1, 14)), *(f"C{number}" for number in range(1, 27)))
_CRITEO_TYPES = (pa.int8(), *[pa.int64()] * 13, *[pa.string()] * 26)
_WIDTH = re.compile(r"Expected (\d+) columns, got (\d+)")
_VALUE = re.compile(r"In CSV column #(\d+): .*?conversion error to [^:]+(?:: invalid value '(.*)')?", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_FOREIGN = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, as Python decodes it (surrogateescape)."""
_HEXADECIMAL, _LONG = r"^\s*[-+]?0[xX]", r"^\s*[-+]?\d{16,}\s*$"
_PADDED = r"^\s*[-+]?0\d+\s*$"
_EXACT = 2**53
"""The largest number below which float64 has every integer."""
_MOST_SHOWN = 80
_ONE_LINE = "a value may not hold the end of a line: write a blank for it"
_AS_UTF8 = "where the file is from Windows, write it as UTF-8: iconv -f CP1252 -t UTF-8 FILE > utf8.csv"


@dataclass(frozen=True)
class TableReader:
    """Lines of one value a column, with a delimiter. quote: what may stand around a value; "" for none. missing: texts
    that are no value, beside none at all.
    """

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    delimiter: str
    quote: str = '"'
    missing: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        return pa.schema(list(zip(self.names, self.types, strict=True)))

    @property
    def surveys(self) -> bool:
        """The columns are known."""
        return False

    @property
    def encodings(self) -> Mapping[str, Any]:
        """Arrow's own: dictionaries of distinct values, as far as they go."""
        return {}

    def sights(self, block: NDArray[np.uint8]) -> set[Any]:
        """Nothing."""
        return set()

    def knowing(self, sights: set[Any]) -> TableReader:
        """Itself."""
        return self

    def parse(self, block: NDArray[np.uint8]) -> Parsed:
        """The rows of a block."""
        starts = line_starts(block)
        is_kept = ~lines_of_no_utf8(block, starts)
        if is_kept.all():
            return self._parse(block, starts)
        raws = {line: block[starts[line] : starts[line + 1]].tobytes() for line in np.flatnonzero(~is_kept).tolist()}
        foreign = [Fault(line, self._why_foreign(raw), shown([raw.strip()]), _AS_UTF8) for line, raw in raws.items()]
        block = block[np.repeat(is_kept, np.diff(starts))]
        rest, kept = self._parse(block, line_starts(block)), np.flatnonzero(is_kept)
        faults = [*foreign, *(dataclasses.replace(fault, line=int(kept[fault.line])) for fault in rest.faults)]
        faults.sort(key=lambda fault: fault.line)
        return dataclasses.replace(rest, n_lines=len(is_kept), faults=faults)

    def _why_foreign(self, raw: bytes) -> str:
        """Why a line that is no UTF-8 is no row: the first such column, or that it has not as many as the others."""
        try:
            values = values_of(raw.rstrip(b"\r\n").decode(errors="surrogateescape"), self.delimiter, self.quote)
        except DataError:
            return "it is no UTF-8 text"
        if len(values) != len(self.names):
            return f"{len(values)} columns instead of {len(self.names)}"
        column = next(name for name, value in zip(self.names, values, strict=True) if _FOREIGN.search(value))
        return f"column {column!r} is no UTF-8 text"

    def _parse(self, block: NDArray[np.uint8], starts: NDArray[np.int64]) -> Parsed:
        """The rows of a block of UTF-8."""
        lines = np.flatnonzero(~_are_blank(block, starts))
        batches, faults = [], []
        for part in self._judged(block, starts, lines):
            faults.append(part) if isinstance(part, Fault) else batches.append(part)
        batch = pa.Table.from_batches(batches, self.schema).combine_chunks().to_batches()
        whole = batch[0] if batch else pa.RecordBatch.from_pylist([], schema=self.schema)
        return Parsed(whole, len(starts) - 1, len(starts) - 1 - len(lines), faults)

    def _judged(
        self, block: NDArray[np.uint8], starts: NDArray[np.int64], lines: NDArray[np.int64]
    ) -> Iterator[pa.RecordBatch | Fault]:
        """The rows of some lines in order, with a fault in the place of each that is none."""
        if not len(lines):
            return
        try:
            found = self._read(block[starts[lines[0]] : starts[lines[-1] + 1]])
            last = block[starts[lines[-1]] : starts[lines[-1] + 1]].tobytes()
            if found.num_rows == len(lines) and not self._leaves_open(last):
                yield found
                return
            fault = Fault(0, "a value in quotes does not end with its line", "", _ONE_LINE)
        except pa.ArrowInvalid as error:
            fault = self._fault(str(error))
        if len(lines) == 1:
            line = int(lines[0])
            whole = shown([block[starts[line] : starts[line + 1]].tobytes().strip()])
            yield dataclasses.replace(fault, line=line, text=fault.text or whole)
            return
        middle = len(lines) // 2
        yield from self._judged(block, starts, lines[:middle])
        yield from self._judged(block, starts, lines[middle:])

    def _read(self, block: NDArray[np.uint8]) -> pa.RecordBatch:
        """Rows as Arrow reads them. pa.ArrowInvalid where it refuses a line."""
        table = pyarrow.csv.read_csv(
            pa.py_buffer(block),
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=self.names),
            parse_options(self.delimiter, self.quote),
            convert_options(self.missing, self.schema),
        )
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=self.schema)

    def _leaves_open(self, line: bytes) -> bool:
        """Whether a value in quotes goes on behind a line; Arrow lets the end of the block end it."""
        has_quote = bool(self.quote) and self.quote.encode() in line
        return has_quote and leaves_open(line.decode(errors="replace"), self.delimiter, self.quote)

    def _fault(self, message: str) -> Fault:
        """Why Arrow refused a line, in words of ours."""
        if found := _WIDTH.search(message):
            return Fault(0, f"{found[2]} columns instead of {found[1]}", "")
        if found := _VALUE.search(message):
            column = int(found[1])
            name, kind, text = self.names[column], self.types[column], (found[2] or "")[:_MOST_SHOWN]
            as_text = f"where the column is text, say so: --type {shlex.quote(name + '=text')}"
            if kind == pa.int64() and _is_number(text) and not text.strip().isdecimal():
                as_text = f"where it is a number, say so: --type {shlex.quote(name + '=number')}"
            return Fault(0, f"column {name!r} is no {kind}", text, as_text)
        return Fault(0, message.splitlines()[0], "")


def _are_blank(block: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines hold nothing, bool[n_lines]; Arrow passes them over."""
    lengths = np.diff(starts)
    return (lengths == 1) | ((lengths == 2) & (block[starts[:-1]] == RETURN))


def parse_options(delimiter: str, quote: str) -> pyarrow.csv.ParseOptions:
    """The way in which lines are cut."""
    return pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=quote or False)


def convert_options(missing: Sequence[str], schema: pa.Schema | None = None) -> pyarrow.csv.ConvertOptions:
    """The way in which values are read: by these types, or by what they look like.

    Booleans are written true and false, as a boolean is where text stands for it; other spellings stay text, as which
    whoever serves them has them.
    """
    return pyarrow.csv.ConvertOptions(
        column_types=schema,
        null_values=["", *missing],
        true_values=["true"],
        false_values=["false"],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )


def checked_delimiter(text: str) -> str:
    """The delimiter that was said, a tab for the two characters by which a shell writes it; "" stays. SettingsError
    where it is none.
    """
    delimiter = "\t" if text == "\\t" else text
    if delimiter and (len(delimiter) > 1 or not delimiter.isascii() or delimiter in '"\r\n\0'):
        raise SettingsError(
            f"--delimiter {text!r}: expected one ASCII character that is no quote and ends no line, such as ';' or "
            "'\\t' for a tab; replace longer ones in the data"
        )
    return delimiter


def missing_numbers(missing: Sequence[str], schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Those of some texts that are numbers, and the columns that hold numbers."""
    columns = [field.name for field in schema if field.type in (pa.int64(), pa.float64())]
    return [text for text in missing if _is_number(text)], columns


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def criteo_reader() -> TableReader:
    """The reader of the log of Criteo's display advertising challenge."""
    return TableReader(CRITEO_NAMES, _CRITEO_TYPES, "\t", "")


def leaves_open(line: str, delimiter: str, quote: str) -> bool:
    """Whether a value in quotes goes on behind the line."""
    try:
        list(csv.reader([line], delimiter=delimiter, quotechar=quote, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def header_names(line: str, delimiter: str, quote: str) -> tuple[str, ...]:
    """The names in a header; a column without one is called by its number. DataError where two are the same."""
    if quote and leaves_open(line, delimiter, quote):
        raise DataError(
            f"the header, {line[:60]!r}, ends within a value in quotes; write each name on one line, or name another "
            "--format"
        )
    names = tuple(name or f"column_{number}" for number, name in enumerate(values_of(line, delimiter, quote)))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"the header names the column {twice!r} twice; rename one of them, or say --no-header (or --names A,B,…) "
            "where the first line is a row"
        )
    return names


def values_of(line: str, delimiter: str, quote: str) -> list[str]:
    """The values of a line. DataError where it is none."""
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))
    try:
        return next(csv.reader([line], delimiter=delimiter, **quoting), [])
    except csv.Error as error:
        why, remedy = str(error), "say --format or --delimiter"
        if "\r" in line.rstrip("\r\n"):
            why = "it holds a carriage return"
            remedy = "let lines end with a newline (\\n or \\r\\n), not with a carriage return alone"
        raise DataError(f"the first line, {line[:40]!r}…, cannot be cut into values ({why}); {remedy}") from error


def doubtful_header(names: Sequence[str]) -> str:
    """The name in a header that looks like a value of a row, a number or a sentence; empty where none does."""
    return next((name for name in names if _NUMBER.fullmatch(name) or len(name.split()) > 3), "")


def table_reader(
    names: tuple[str, ...],
    samples: Iterable[bytes],
    separators: tuple[str, str],
    types: Mapping[str, str],
    missing: tuple[str, ...],
) -> TableReader:
    """The reader whose types suit all samples (pieces of whole lines), or are those that were said (names of KINDS).

    separators: delimiter and quote. SettingsError where a type is said of a column that is not there.
    """
    unknown = next((name for name in types if name not in names), None)
    if unknown is not None:
        raise SettingsError(f"--type {unknown}=…: there is no such column; there are {', '.join(names[:50])}")
    found = [_Looks(pa.null())] * len(names)
    for sample in samples:
        others = _looks(names, sample, separators, missing)
        found = [_both(one, other) for one, other in zip(found, others, strict=True)]
    empty = [name for name, one in zip(names, found, strict=True) if one.type == pa.null() and name not in types]
    if empty:
        logger.warning(
            "%s had no value in what was looked at, and is kept as text; where it has numbers later on, say --type "
            "%s=number (or integer)", ", ".join(map(repr, empty[:8])), shlex.quote(empty[0]),
        )  # fmt: skip
    padded = [name for name, one in zip(names, found, strict=True) if one.loses_zeros and name not in types]
    if padded:
        logger.warning(
            "%s has whole numbers with zeros in front, which are lost: where these are codes, say --type %s",
            ", ".join(map(repr, padded[:8])), shlex.quote(padded[0] + "=text"),
        )  # fmt: skip
    chosen = (KINDS[types[name]] if name in types else one.type for name, one in zip(names, found, strict=True))
    return TableReader(
        names, tuple(pa.string() if kind == pa.null() else kind for kind in chosen), *separators, missing
    )


class _Looks(NamedTuple):
    """The type that a column seems to have. is_wide: it has integers that no float64 tells apart; is_padded: some have
    zeros in front.
    """

    type: pa.DataType
    is_wide: bool = False
    is_padded: bool = False

    @property
    def loses_zeros(self) -> bool:
        """Whether zeros in front are lost."""
        return self.is_padded and self.type in (pa.int64(), pa.float64())


def _looks(
    names: tuple[str, ...], sample: bytes, separators: tuple[str, str], missing: tuple[str, ...]
) -> list[_Looks]:
    """The types that Arrow finds in a sample, bad lines left out. Text are integers of more than 64 bits, those that a
    float64 cannot hold among fractions, and hexadecimal numbers: whoever serves such identifiers has text.
    """
    sample = _of_utf8(sample)
    table = _sample_table(names, sample, separators, convert_options(missing))
    numbers = [field.name for field in table.schema if field.type in (pa.int64(), pa.float64())]
    as_text = pa.schema([pa.field(name, pa.string()) for name in numbers])
    texts = _sample_table(names, sample, separators, convert_options(missing, as_text)) if numbers else table
    return [_look(field.type, texts.column(field.name)) for field in table.schema]


def _of_utf8(sample: bytes) -> bytes:
    """The lines of a sample that are UTF-8; all where none is."""
    block = np.frombuffer(sample if sample.endswith(b"\n") else sample + b"\n", np.uint8)
    starts = line_starts(block)
    is_kept = ~lines_of_no_utf8(block, starts)
    return sample if is_kept.all() or not is_kept.any() else block[np.repeat(is_kept, np.diff(starts))].tobytes()


def _look(kind: pa.DataType, column: pa.ChunkedArray) -> _Looks:
    """The type of a column, given the texts of its numbers. Arrow takes text that is no UTF-8, of a sample that has no
    other lines, for bytes, as which no model that learns from them knows the text: as text all its lines are bad ones.
    """
    if kind not in (pa.int64(), pa.float64()):
        return _Looks(pa.string() if pa.types.is_binary(kind) else kind)
    if _any(column, _HEXADECIMAL):
        return _Looks(pa.string())
    is_wide = any(abs(int(text)) > _EXACT for text in column.filter(_matches(column, _LONG)).to_pylist())
    return _Looks(pa.string() if is_wide and kind == pa.float64() else kind, is_wide, _any(column, _PADDED))


def _matches(column: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring_regex(column, pattern), False)


def _any(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(_matches(column, pattern)).as_py())


def _sample_table(
    names: tuple[str, ...],
    sample: bytes,
    separators: tuple[str, str],
    conversion: pyarrow.csv.ConvertOptions,
) -> pa.Table:
    """The rows of a sample. DataError where there is no seeing them."""
    options = parse_options(*separators)
    options.invalid_row_handler = lambda _row: "skip"
    try:
        return pyarrow.csv.read_csv(
            pa.py_buffer(sample),
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(sample) + 1, column_names=names),
            options,
            conversion,
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"no columns can be made out ({str(error).splitlines()[0]}); say --format or --delimiter"
        ) from error


def _both(first: _Looks, second: _Looks) -> _Looks:
    """A column that looks like one thing here and like another there."""
    is_wide = first.is_wide or second.is_wide
    kind = _type_of_both(first.type, second.type)
    kind = pa.string() if is_wide and kind == pa.float64() else kind
    return _Looks(kind, is_wide, first.is_padded or second.is_padded)


def _type_of_both(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.null() in (one, other):
        return other if one == pa.null() else one
    if one == other:
        return one
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    moments = (
        pa.types.is_date(one) or pa.types.is_timestamp(one),
        pa.types.is_date(other) or pa.types.is_timestamp(other),
    )
    if all(moments) and not (getattr(one, "tz", None) or getattr(other, "tz", None)):
        return pa.timestamp("ns") if pa.timestamp("ns") in (one, other) else pa.timestamp("s")
    return pa.string()
