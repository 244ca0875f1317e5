"""Rows as they came, kept beside the hashed ones: whoever looks at them later need not decode their shards again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.draw import sampled
from dfm.data.parquet import Batch, Shard

Packed = NDArray[np.uint64]
"""Batches one after the other, each an Arrow stream of its own, whose length is a multiple of 8 bytes."""
_PLACE = b"dfm.place"


def nothing_aside() -> Packed:
    """No batches."""
    return np.zeros(0, np.uint64)


def packed(batch: Batch, columns: Sequence[str], share: float) -> bytes:
    """A share of the rows of a batch, drawn by their place, and where they come from: an Arrow stream.

    Values are stored as they are: a dictionary may hold a hundred times as many as the rows that are left.
    """
    data = batch.data.select(list(columns))
    rows = sampled(data, share, batch.place)
    arrays = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in rows.columns]
    place = {_PLACE: json.dumps([batch.shard.url, batch.row_group, batch.first_row])}
    schema = pa.schema([pa.field(name, a.type) for name, a in zip(columns, arrays, strict=True)], place)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())


def joined(streams: Iterable[bytes]) -> Packed:
    """All batches."""
    return np.frombuffer(b"".join(streams), np.uint64)


def unpacked(aside: Packed, shards: Mapping[str, Shard]) -> list[Batch]:
    """The batches, of shards that are known by their URLs; `kept` of none of them says which rows were drawn."""
    source, found = pa.BufferReader(pa.py_buffer(aside)), []
    while source.tell() < aside.nbytes:
        with pa.ipc.open_stream(source) as stream:
            url, row_group, first_row = json.loads(stream.schema.metadata[_PLACE])
            # To its end: behind the mark there begins the next.
            (data,) = stream
            found.append(Batch(data.replace_schema_metadata(None), shards[url], row_group, first_row))
    return found
