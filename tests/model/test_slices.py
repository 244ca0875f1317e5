"""Sums of slices are put together wherever they come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from dfm.model.slices import ScoredRows, SliceSums, Slicing, summed


def sums(n_rows: int) -> SliceSums:
    numbers = np.arange(n_rows, dtype=np.float64)
    data = pa.record_batch({"site": [f"site {number % 3}" for number in range(n_rows)]})
    rows = ScoredRows(data, numbers, numbers, numbers, np.ones(n_rows), numbers)
    return summed(rows, Slicing.of(["site"]), is_regression=True)


def as_from_the_wire(given: SliceSums) -> SliceSums:
    """The same in one frame of bytes, where arrays lie as they come."""
    arrays = [
        pa.Array.from_buffers(chunk.type, len(chunk), [each and _at_odd_address(each) for each in chunk.buffers()])
        for column in given.tables[0].combine_chunks().columns
        for chunk in column.chunks
    ]
    return dataclasses.replace(given, tables=(pa.table(arrays, given.tables[0].column_names),))


def _at_odd_address(buffer: pa.Buffer) -> pa.Buffer:
    return pa.py_buffer(b"." + buffer.to_pybytes()).slice(1)


def test_sums_that_come_over_the_wire_are_added_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    here, there = sums(30), as_from_the_wire(sums(40))
    assert any(chunk.buffers()[1].address % 8 for chunk in there.tables[0].column(1).chunks)
    assert (here + there).tables[0].equals((here + sums(40)).tables[0])
    assert capfd.readouterr().err == ""
