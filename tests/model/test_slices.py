"""Sums of slices are put together wherever they come from."""

from __future__ import annotations

import dataclasses
import functools
import io
import math

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from dfm.cli.console import slices_table
from dfm.model.slices import ScoredRows, SliceSums, Slicing, summed, worst_first


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


def one_site(name: str, n_rows: int, probability: float, clicks: int, weight: float = 1.0) -> SliceSums:
    """Sums of rows of one site that are all predicted the same."""
    scores = np.full(n_rows, math.log(probability / (1 - probability)))
    labels = (np.arange(n_rows) < clicks).astype(np.float64)
    rows = ScoredRows(
        pa.record_batch({"site": [name] * n_rows}),
        scores,
        np.full(n_rows, probability),
        labels,
        np.full(n_rows, weight),
        scores,
    )
    return summed(rows, Slicing.of(["site"]), is_regression=False)


SITES = [
    one_site("without weight", 1000, 0.3, 0, weight=0.0),
    one_site("hardly a click was expected", 1000, 0.001, 0),
    one_site("one row", 1, 0.2, 0),
    one_site("usual", 1000, 0.2, 210),
    one_site("tracking is broken", 1341, 0.314, 0),
    one_site("one click", 1341, 0.314, 1),
    one_site("clicks alone", 1000, 0.02, 1000),
]


def test_slices_of_one_class_stand_by_the_entropy_that_one_row_of_the_other_class_would_give_them() -> None:
    found = functools.reduce(SliceSums.__add__, SITES)
    records = worst_first(found, 0, 1, 50, is_regression=False)
    names = [record["slice"]["site"] for record in records]
    assert names[0] == "clicks alone"
    assert {*names[1:3]} == {"tracking is broken", "one click"}
    assert names[3:] == ["usual", "one row", "hardly a click was expected", "without weight"]
    undefined = [record["slice"]["site"] for record in records if record["normalized_entropy"] is None]
    assert {*names} - {*undefined} == {"usual", "one click"}, "a place in the order is no metric"
    assert [record["slice"]["site"] for record in worst_first(found, 0, 1, 3, is_regression=False)] == names[:3]


def test_tables_of_slices_begin_with_one_that_has_no_entropy() -> None:
    records = worst_first(SITES[3] + SITES[6], 0, 1, 50, is_regression=False)
    file = io.StringIO()
    Console(file=file, width=100).print(slices_table("site", [{**record, "auc": None} for record in records]))
    first, second = [line.split() for line in file.getvalue().splitlines() if line.strip()][-2:]
    assert (first[:2], first[6], second[0]) == (["clicks", "alone"], "-", "usual")
