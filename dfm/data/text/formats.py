"""The formats of text, a record each: how its first lines are known, the reader that a conversion begins with, and what
a job says of the columns.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dfm.data.discovery import parquet_of_json
from dfm.data.text.parsed import Reader
from dfm.data.text.sources import Source, head_of, samples_of
from dfm.data.text.sparse import SparseReader
from dfm.data.text.tables import CRITEO_NAMES, criteo_reader, header_names, table_reader, values_of
from dfm.data.text.vowpal import VowpalReader
from dfm.errors import DataError, SettingsError
from dfm.storage import files

AUTO = "auto"
_MOST_LINES = 100
_MOST_SOURCES = 8
"""Files that are looked into for the types of columns."""
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_LIBFFM = re.compile(rf"{_NUMBER}(?:\s+[0-9]+:[0-9]+:{_NUMBER})+\s*(?:#.*)?")
_LIBSVM = re.compile(rf"{_NUMBER}(?:\s+qid:[0-9]+)?(?:\s+[0-9]+:{_NUMBER})*\s*(?:#.*)?")
_VW = re.compile(rf"\s*{_NUMBER}(?:\s+[^|]*)?\s[^|]*\|.*|\s*{_NUMBER}\s+\S*\|.*")


@dataclass(frozen=True)
class Wishes:
    """Words of the user about tables: delimiter ("" for the format's own), whether there is a header, types of columns
    by name, texts that mean a missing value, names of the columns where no line has them.
    """

    delimiter: str = ""
    header: bool = True
    types: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format of text. fits: whether the first lines, without blank ones and comments, look like it; begin: the reader
    of the sources (which know their headers), given the first line and the wishes. delimiter, quote: of tables.
    """

    name: str
    meaning: str
    fits: Callable[[Sequence[str]], bool]
    begin: Callable[[Sequence[Source], str, Wishes, files.Options], Reader]
    delimiter: str = ""
    quote: str = ""

    @property
    def is_table(self) -> bool:
        """Whether a line has a value for each column, and the first may name them."""
        return bool(self.delimiter)


def _all(pattern: re.Pattern[str]) -> Callable[[Sequence[str]], bool]:
    return lambda lines: bool(lines) and all(pattern.fullmatch(line) for line in lines)


def _looks_sparse(lines: Sequence[str]) -> bool:
    return _all(_LIBSVM)(lines) and any(":" in line for line in lines)


def _looks_like_criteo(lines: Sequence[str]) -> bool:
    """Whether most lines are whole: what strips blanks from the ends of lines takes columns without values along."""
    rows = [line.split("\t") for line in lines]
    counts = [value for row in rows for value in row[:14]]
    n_whole = sum(len(row) == len(CRITEO_NAMES) for row in rows)
    return (
        n_whole > len(rows) // 2
        and max(map(len, rows)) == len(CRITEO_NAMES)
        and all(re.fullmatch(r"-?[0-9]*", value) for value in counts)
    )


def _delimited_by(delimiter: str, quote: str = "") -> Callable[[Sequence[str]], bool]:
    def fits(lines: Sequence[str]) -> bool:
        begins = list(_not_quoted(lines, quote))
        return bool(lines) and delimiter in lines[0] and all(delimiter in line for line in begins[:-1])

    return fits


def _not_quoted(lines: Sequence[str], quote: str) -> Iterator[str]:
    """The lines but those in which a value in quotes goes on from the line before, whose reader says more of them."""
    is_open = False
    for line in lines:
        if not is_open:
            yield line
        is_open ^= bool(quote) and bool(line.count(quote) % 2)


def _begin_sparse(has_fields: bool) -> Callable[[Sequence[Source], str, Wishes, files.Options], Reader]:
    def begin(_sources: Sequence[Source], first: str, _wishes: Wishes, _options: files.Options) -> Reader:
        return SparseReader(has_fields, not has_fields and bool(re.search(r"\sqid:[0-9]", first.partition("#")[0])))

    return begin


def _begin_table(delimiter: str, quote: str) -> Callable[[Sequence[Source], str, Wishes, files.Options], Reader]:
    def begin(sources: Sequence[Source], first: str, wishes: Wishes, options: files.Options) -> Reader:
        separators = (wishes.delimiter or delimiter, quote)
        names = header_names(first, *separators) if wishes.header else _names_of(first, wishes, *separators)
        return table_reader(names, _samples(sources, options), separators, wishes.types, wishes.missing)

    return begin


def _names_of(first: str, wishes: Wishes, delimiter: str, quote: str) -> tuple[str, ...]:
    """The names that were said, or numbers. SettingsError where the first line has not as many values."""
    n_columns = len(values_of(first, delimiter, quote))
    if not wishes.names:
        return tuple(f"column_{number}" for number in range(n_columns))
    if len(wishes.names) != n_columns or len({*wishes.names}) != n_columns:
        raise SettingsError(
            f"--names {','.join(wishes.names)}: {len(wishes.names)} names, and the first line has {n_columns} values; "
            "give each column a name of its own"
        )
    return wishes.names


def _samples(sources: Sequence[Source], options: files.Options) -> Iterator[bytes]:
    step = -(-len(sources) // _MOST_SOURCES)
    for source in sources[::step]:
        yield from samples_of(source, options)


FORMATS = {
    one.name: one
    for one in (
        Format("criteo", "Criteo's log: label, I1 to I13, C1 to C26, tabs between, no header", _looks_like_criteo,
               lambda *_: criteo_reader()),
        Format("vw", "Vowpal Wabbit: label [importance] ['tag]|namespace name:value …", _all(_VW),
               lambda *_: VowpalReader()),
        Format("libffm", "label field:index:value …", _all(_LIBFFM), _begin_sparse(True)),
        Format("libsvm", "label [qid:group] index:value …", _looks_sparse, _begin_sparse(False)),
        Format("tsv", "tabs between values, nothing quoted", _delimited_by("\t"), _begin_table("\t", ""), "\t"),
        Format("csv", "commas between values, maybe in quotes", _delimited_by(",", '"'),
               _begin_table(",", '"'), ",", '"'),
    )
}  # fmt: skip
"""In the order in which they are tried on the first lines."""


def lines_of(source: Source, options: files.Options) -> list[str]:
    """The first lines of a source, its header too, as far as they are whole."""
    found = head_of(source, options).decode(errors="replace").split("\n")
    whole = found[:-1] if len(found) > 1 else found
    return [line.removesuffix("\r") for line in whole[:_MOST_LINES]]


def _is_json(line: str) -> bool:
    """Whether a first line is a JSON object or array, or the begin of one over several lines."""
    if line in ("{", "[") or line.startswith("[{"):
        return True
    try:
        return isinstance(json.loads(line), dict | list)
    except ValueError:
        return False


def format_of(name: str, source: Source, lines: Sequence[str]) -> Format:
    """The format of this name, or of "auto" that of the first lines. DataError where they look like none."""
    if name not in (AUTO, *FORMATS):
        raise SettingsError(f"format {name!r} is not known; there are {', '.join(FORMATS)}")
    telling = [line for line in lines if line.strip() and not line.startswith("#")]
    if (name == AUTO or FORMATS[name].is_table) and telling and _is_json(telling[0].strip()):
        raise DataError(
            f"{source.url} begins with {telling[0][:60]!r}, which is JSON, and dfm convert reads lines of other text; "
            f"where each line is an object, {parquet_of_json(posixpath.basename(source.url))} makes Parquet of it"
        )
    if name != AUTO:
        return FORMATS[name]
    found = next((one for one in FORMATS.values() if one.fits(telling)), None)
    if found is None:
        if not telling:
            raise DataError(f"{source.url} has no row in its first lines; name its --format, or data that has rows")
        raise DataError(
            f"{source.url} begins with {telling[0][:60]!r}, which looks like none of {', '.join(FORMATS)}; name its "
            "--format (for other delimiters: --format csv --delimiter ';')"
        )
    return found
