"""Rows that a block of lines gave, the lines that gave none, and the columns of weighted lists in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LABEL, WEIGHT, GROUP, FEATURES = "label", "weight", "group", "features"
"""Names of columns whose formats have none."""
IS_ROW, IS_BLANK = 0, 1
"""States of a line that are no fault; others are keys of the format's reasons."""
_SHOWN = 80
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no row: its number in the block, from 0; why, and the text that is at fault. remedy: what may be
    done beside repairing it, if anything is known.
    """

    line: int
    reason: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rows of a block, and what became of its lines: n_lines = batch.num_rows + len(faults) + n_blank."""

    batch: pa.RecordBatch
    n_lines: int
    n_blank: int
    faults: list[Fault]


class Reader(Protocol):
    """A format, as it is in one conversion: what turns blocks of whole lines into rows of one schema.

    Blocks are uint8[n_bytes], and end with the end of a line. Where `surveys`, all blocks are first seen once, as the
    columns depend on what lies in them.
    """

    @property
    def schema(self) -> pa.Schema:
        """The columns of the shards."""

    @property
    def surveys(self) -> bool:
        """Whether blocks have to be seen before they are parsed."""

    @property
    def encodings(self) -> Mapping[str, Any]:
        """Arguments of pyarrow's ParquetWriter that suit the columns."""

    def sights(self, block: NDArray[np.uint8]) -> set[Any]:
        """All in a block that the columns depend on."""

    def knowing(self, sights: set[Any]) -> Reader:
        """The reader for blocks in which these things lie."""

    def parse(self, block: NDArray[np.uint8]) -> Parsed:
        """The rows of a block."""


def faults_of(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    status: NDArray[np.uint8],
    wrong: NDArray[np.int64],
    reasons: Mapping[int, str],
) -> list[Fault]:
    """The lines whose status is a fault. wrong: where in the buffer the word at fault begins, int64[n_lines]."""
    found = []
    for line in np.flatnonzero(status > IS_BLANK):
        rest = data[wrong[line] : min(wrong[line] + 4 * _SHOWN, starts[line + 1])].tobytes()
        found.append(Fault(int(line), reasons[int(status[line])], shown(rest.split(maxsplit=1)[:1])))
    return found


def shown(words: Sequence[bytes]) -> str:
    """The first characters of the first word, for a message."""
    text = words[0].decode(errors="replace") if words else ""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def is_beyond(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which numbers float32 cannot hold, bool[n]."""
    return ~(np.abs(values) <= _LARGEST)


def row_lines(status: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets of the entries of those lines that are rows, int64[n_rows + 1]; all others have no entries."""
    return np.append(offsets[:-1][status == IS_ROW], offsets[-1])


def without_lines(keep: NDArray[np.bool_], offsets: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which entries belong to lines that are kept, bool[n_entries]; and the offsets of what is left, int64[n + 1]."""
    lengths = np.diff(offsets)
    return np.repeat(keep, lengths), np.append(0, np.cumsum(np.where(keep, lengths, 0)))


def weighted_lists(
    offsets: NDArray[np.int64], columns: NDArray[np.int32], n_columns: int, keys: pa.Array, values: NDArray[np.float32]
) -> list[pa.MapArray]:
    """A map of key to weight per row, for each column.

    offsets int64[n_rows + 1]: row i has the entries [offsets[i], offsets[i + 1]). columns int32[n_entries]: where an
    entry goes; its order among those of its row and column stays.
    """
    if n_columns == 1:
        return [pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, pa.array(values))]
    order = np.argsort(columns.astype(np.uint16), kind="stable")  # of 16 bits NumPy sorts by radix
    rows = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))[order]
    bounds = np.searchsorted(columns[order], np.arange(n_columns + 1))
    keys, weights = keys.take(pa.array(order)), values[order]
    return [
        pa.MapArray.from_arrays(
            pa.array(_offsets(rows[first:stop], len(offsets) - 1)),
            keys.slice(first, stop - first),
            pa.array(weights[first:stop]),
        )
        for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def _offsets(rows: NDArray[np.int32], n_rows: int) -> NDArray[np.int32]:
    """Offsets of lists whose entries, in order, belong to these rows: int32[n_rows + 1]."""
    counts = np.bincount(rows, minlength=n_rows)
    return np.append(0, np.cumsum(counts)).astype(np.int32)


def list_encodings(columns: Sequence[str], keys_are_text: bool) -> dict[str, Any]:
    """Arguments of ParquetWriter for weighted lists: of numbers first bytes beside first bytes, which compresses nearly
    as well as a dictionary in half its time; of names codes of a dictionary.
    """
    keys, values = ([f"{column}.key_value.{part}" for column in columns] for part in ("key", "value"))
    split = dict.fromkeys(values if keys_are_text else [*keys, *values], "BYTE_STREAM_SPLIT")
    return {"use_dictionary": keys if keys_are_text else False, "column_encoding": split}
