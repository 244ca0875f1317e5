"""Rows as they came, kept beside the hashed ones: whoever looks at them later need not decode their shards again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.draw import sampled
from dfm.data.parquet import Batch, Shard

Packed = NDArray[np.uint64]
"""Batches in Arrow streams, one after the other, each of the batches that follow each other with one schema. The length
of a stream is a multiple of 8 bytes.
"""
MOST_BYTES = 1 << 26
"""Bytes of a reading task beyond which nothing is kept of it: columns may hold whole pages of text."""


def nothing_aside() -> Packed:
    """No batches."""
    return np.zeros(0, np.uint64)


class RowsAside:
    """A share of the rows of a reading task, drawn by their place, with some columns."""

    def __init__(self, columns: Sequence[str], share: float) -> None:
        self._columns, self._share = list(columns), share
        self._sink = pa.BufferOutputStream()
        self._stream: Any = None
        self._schema: pa.Schema | None = None
        self._is_too_large = False

    def add(self, batch: Batch) -> None:
        """Keep the share of a batch. Values are stored as they are: a dictionary may hold a hundred times as many as
        there are rows left.
        """
        if self._is_too_large or not batch.data.num_rows:
            return
        rows = sampled(batch.data.select(self._columns), self._share, batch.place)
        arrays = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in rows.columns]
        data = pa.RecordBatch.from_arrays(arrays, self._columns)
        self._is_too_large = self._sink.tell() + data.nbytes > MOST_BYTES
        if self._is_too_large:
            self._stream, self._sink = None, pa.BufferOutputStream()
            return
        if self._stream is None or data.schema != self._schema:
            self._end_stream()
            self._stream, self._schema = pa.ipc.new_stream(self._sink, data.schema), data.schema
        place = {"url": batch.shard.url, "row_group": str(batch.row_group), "first_row": str(batch.first_row)}
        self._stream.write_batch(data, custom_metadata=place)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def packed(self) -> Packed:
        """All that was kept, once; nothing where it was too large."""
        self._end_stream()
        self._stream, self._is_too_large = None, True
        return np.frombuffer(self._sink.getvalue(), np.uint64)


def unpacked(aside: Packed, shards: Mapping[str, Shard]) -> list[Batch]:
    """The batches, of shards that are known by their URLs; `kept` of none of them says which rows were drawn."""
    source, found = pa.BufferReader(pa.py_buffer(aside)), list[Batch]()
    while source.tell() < aside.nbytes:
        stream = pa.ipc.open_stream(source)
        while True:
            try:
                data, told = stream.read_next_batch_with_custom_metadata()
            except StopIteration:  # behind the mark of its end begins the next
                break
            found.append(Batch(data, shards[told["url"].decode()], int(told["row_group"]), int(told["first_row"])))
    return found
