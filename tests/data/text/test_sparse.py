"""libsvm and libffm: what the kernels read is what a parser that splits lines reads."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.compilation import compiled
from dfm.data.text.parsed import Parsed
from dfm.data.text.scanning import EXACT, HARD, NONE, address, number, read_hard
from dfm.data.text.sparse import SparseReader

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
LARGEST = float(np.finfo(np.float32).max)


def parsed(reader: SparseReader, text: bytes) -> Parsed:
    return reader.parse(np.frombuffer(text, np.uint8))


def naive_number(word: str) -> float:
    """A decimal that float32 can hold. ValueError."""
    if not NUMBER.fullmatch(word) or abs(float(word)) > LARGEST:
        raise ValueError(word)
    return float(word)


def naive_whole(word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise ValueError(word)
    return int(word)


def naive_line(line: str, has_fields: bool) -> tuple[float, list[tuple[int, int, float]]] | None:
    """Label and (field, index, value) of a line; None where it is blank. ValueError where it is no row."""
    words = re.split(r"[ \t\r]+", line.partition("#")[0].strip(" \t\r"))
    if words == [""]:
        return None
    entries = []
    for word in words[1:]:
        *field, index, value = word.split(":")
        if len(field) != has_fields:
            raise ValueError(word)
        number = naive_whole(field[0]) if has_fields else 0
        if number >= 1 << 16:
            raise ValueError(word)
        entries.append((number, naive_whole(index), float(np.float32(naive_number(value)))))
    return naive_number(words[0]), entries


def naive(text: str, has_fields: bool) -> tuple[list[tuple[float, list[tuple[int, int, float]]]], list[int], int]:
    """Rows, numbers of bad lines, number of blank lines."""
    rows, bad, blank = [], [], 0
    for at, line in enumerate(text.split("\n")[:-1]):
        try:
            row = naive_line(line, has_fields)
        except ValueError:
            bad.append(at)
            continue
        if row is None:
            blank += 1
        else:
            rows.append(row)
    return rows, bad, blank


def rows_of(found: Parsed, fields: tuple[int, ...]) -> list[tuple[float, list[tuple[int, int, float]]]]:
    """Rows as `naive` has them, entries by field."""
    columns = found.batch.schema.names[1:]
    return [
        (row["label"], [(field, *pair) for field, name in zip(fields, columns, strict=True) for pair in row[name]])
        for row in found.batch.to_pylist()
    ]


whole = st.integers(0, 10**20).map(str) | st.from_regex(r"[0-9]{1,4}", fullmatch=True)
decimal = (
    st.floats(allow_nan=True, width=64).map(repr)
    | st.floats(-1e6, 1e6).map(lambda x: f"{x:.16g}")
    | st.from_regex(r"[-+]?[0-9]{0,22}\.?[0-9]{0,22}([eE][-+]?[0-9]{1,3})?", fullmatch=True)
)
junk = st.sampled_from(
    ["", "x", ":", "1:", ":1", "1:2:3:4", "nan", "inf", "1_0:2", "1:0x1", "qid:1", "1:1#", "-1:2", "#"]
)
blanks = st.sampled_from([" ", "  ", "\t", " \t"])


@st.composite
def lines(draw: st.DrawFn, has_fields: bool) -> str:
    def entry() -> str:
        parts = [draw(st.integers(0, 70_000).map(str))] if has_fields else []
        return ":".join([*parts, draw(whole), draw(decimal)])

    words = [draw(decimal | junk)]
    for _ in range(draw(st.integers(0, 5))):
        words.append(entry() if draw(st.integers(0, 9)) else draw(junk))
    text = draw(st.sampled_from(["", " "])) + "".join(word + draw(blanks) for word in words)
    return text + draw(st.sampled_from(["", "\r", "# a comment: 1:2"]))


@settings(max_examples=300, deadline=None)
@given(st.booleans().flatmap(lambda has: st.tuples(st.just(has), st.lists(lines(has), max_size=6))))
def test_every_line_is_read_as_a_parser_that_splits_it_reads_it(case: tuple[bool, list[str]]) -> None:
    has_fields, given_lines = case
    text = "".join(f"{line}\n" for line in given_lines)
    rows, bad, blank = naive(text, has_fields)
    block = np.frombuffer(text.encode(), np.uint8)
    reader = SparseReader(has_fields).knowing(SparseReader(has_fields).sights(block))
    if has_fields:
        assert reader.fields == tuple(sorted({field for _, entries in rows for field, _, _ in entries}))
    found = reader.parse(block)
    assert [fault.line for fault in found.faults] == bad
    assert (found.n_lines, found.n_blank) == (len(given_lines), blank)
    by_field = [(label, sorted(entries, key=lambda entry: entry[0])) for label, entries in rows]
    assert rows_of(found, reader.fields if has_fields else (0,)) == by_field


@compiled
def _number(data, end):  # type: ignore[no-untyped-def]
    return number(address(data), 0, end)


@settings(max_examples=500, deadline=None)
@given(decimal)
def test_a_number_is_to_the_bit_what_python_reads(word: str) -> None:
    data = np.frombuffer((word + " ").encode(), np.uint8)
    value, behind, kind = _number(data, len(word))
    if NUMBER.fullmatch(word) is None:
        assert kind == NONE or behind < len(word)
        return
    assert behind == len(word)
    if kind == HARD:
        value = read_hard(data, np.array([0]), np.array([len(word)]))[0]
    assert (value, math.copysign(1, value)) == (float(word), math.copysign(1, float(word)))


def test_short_decimals_need_no_other_parser() -> None:
    """What makes most files fast: were they all left to Arrow, nothing else would notice."""
    for word in ("0", "-1", "0.5", "12345.678", "1e-7", "+3", "00012.50", "0.000123456"):
        assert _number(np.frombuffer(word.encode(), np.uint8), len(word))[2] == EXACT


def test_groups_of_a_ranking_become_a_column() -> None:
    found = parsed(SparseReader(has_groups=True), b"2 qid:10 1:0.5\n1 qid:11 3:1 # later\n0 qid:x 1:1\n")
    assert found.batch.to_pylist() == [
        {"label": 2.0, "group": 10, "features": [(1, 0.5)]},
        {"label": 1.0, "group": 11, "features": [(3, 1.0)]},
    ]
    assert [fault.line for fault in found.faults] == [2]
    unexpected = parsed(SparseReader(), b"2 qid:10 1:0.5\n").faults
    assert "qid" in unexpected[0].reason


def test_what_scikit_learn_writes_is_read_to_the_bit() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    X = sparse.random(
        200, 50, 0.1, "csr", np.float64, rng, data_rvs=lambda n: rng.normal(size=n) * 10.0 ** rng.integers(-12, 12, n)
    )
    y, groups = rng.normal(size=200), np.repeat(np.arange(20), 10)
    file = io.BytesIO()
    datasets.dump_svmlight_file(X, y, file, zero_based=False, comment="made by a test", query_id=groups)
    batch = parsed(SparseReader(has_groups=True), file.getvalue()).batch
    assert batch.num_rows == 200
    assert batch["group"].to_pylist() == groups.tolist()
    file.seek(0)
    again, labels = datasets.load_svmlight_file(file, n_features=50, zero_based=False)
    assert np.array_equal(batch["label"].to_numpy(), labels)
    for row, entries in enumerate(batch["features"].to_pylist()):
        ours = sorted((index - 1, value) for index, value in entries)
        theirs = again[row]
        assert ours == sorted(zip(theirs.indices.tolist(), theirs.data.astype(np.float32).tolist(), strict=True))
