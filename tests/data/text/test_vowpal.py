"""Vowpal Wabbit's text: what the kernel reads is what a parser that splits lines reads."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfm.data.text.vowpal import VowpalReader

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
LARGEST = float(np.finfo(np.float32).max)
BLANKS = re.compile(r"[ \t\r]+")
Row = tuple[float, float, dict[str, list[tuple[str, float]]]]


def checked(word: str) -> float:
    if not NUMBER.fullmatch(word) or abs(float(word)) > LARGEST:
        raise ValueError(word)
    return float(word)


def naive_line(line: str) -> Row | None:
    """Label, importance and features by namespace of a line; None where it is blank. ValueError where it is no row."""
    line = line.strip(" \t\r")
    if not line:
        return None
    head, pipe, rest = line.partition("|")
    if not pipe:
        raise ValueError("no |")
    words = BLANKS.split(head.strip(" \t\r")) if head.strip(" \t\r") else []
    tags = [at for at, word in enumerate(words) if word.startswith("'")]
    if tags:
        words = words[: tags[0]]
    elif words and head[-1] not in " \t\r":
        words = words[:-1]
    if not words or len(words) > 3 or not all(map(NUMBER.fullmatch, words)):
        raise ValueError(head)
    label, importance = [*(checked(word) for word in words[:2]), 1.0][:2]  # an initial prediction is not kept
    if importance < 0:
        raise ValueError(head)
    found: dict[str, list[tuple[str, float]]] = {}
    for part in rest.split("|"):
        begins_blank = part[:1] in (" ", "\t", "\r", "")
        words = BLANKS.split(part.strip(" \t\r")) if part.strip(" \t\r") else []
        name = "" if begins_blank else words.pop(0)
        name, colon, weight = name.partition(":")
        scale = checked(weight) if colon else 1.0
        for word in words:
            feature, colon, value = word.partition(":")
            if not feature:
                raise ValueError(word)
            product = scale * (checked(value) if colon else 1.0)
            if abs(product) > LARGEST:
                raise ValueError(word)
            found.setdefault(name, []).append((feature, float(np.float32(product))))
    return label, float(np.float32(importance)), found


decimal = st.floats(allow_nan=True).map(repr) | st.floats(-1e3, 1e3).map(lambda x: f"{x:.6g}") | st.just("1")
name = st.text(st.sampled_from("abcä'#"), max_size=3)
blank = st.sampled_from([" ", "  ", "\t"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    head = draw(st.lists(decimal | st.sampled_from(["'tag", "x"]), max_size=5))
    text = "".join(word + draw(blank) for word in head)
    text += draw(st.sampled_from(["", "", "", "tag", "'t"]))
    for _ in range(draw(st.integers(0, 3))):
        weight = draw(st.sampled_from(["", "", ":2", ":0.5", ":x"]))
        text += "|" + draw(name) + weight
        for feature in draw(st.lists(name, max_size=3)):
            text += draw(blank) + feature + (":" + draw(decimal) if draw(st.booleans()) else "")
        text += draw(st.sampled_from(["", " "]))
    return text + draw(st.sampled_from(["", "\r"]))


@settings(max_examples=400, deadline=None)
@given(st.lists(lines(), max_size=5))
@example(["0.0 1 3.402823466385289e+38 |"])
def test_every_line_is_read_as_a_parser_that_splits_it_reads_it(given_lines: list[str]) -> None:
    rows: list[Row] = []
    bad, n_blank = [], 0
    for at, line in enumerate(given_lines):
        try:
            row = naive_line(line)
        except ValueError:
            bad.append(at)
            continue
        n_blank += row is None
        rows += [row] if row is not None else []
    block = np.frombuffer("".join(f"{line}\n" for line in given_lines).encode(), np.uint8)
    reader = VowpalReader().knowing(VowpalReader().sights(block))
    found = reader.parse(block)
    assert [fault.line for fault in found.faults] == bad
    assert (found.n_lines, found.n_blank) == (len(given_lines), n_blank)
    assert set(reader.namespaces) == {name.encode() for _, _, features in rows for name in features}
    for row, (label, importance, features) in zip(found.batch.to_pylist(), rows, strict=True):
        assert (row["label"], row.get("weight", 1.0)) == (label, importance)
        columns = zip(reader.namespaces, reader.columns, strict=True)
        assert {name.decode(): row[column] for name, column in columns if row[column]} == features


def test_columns_keep_apart_what_is_called_like_another_one() -> None:
    reader = VowpalReader((b"", b"features", b"label", b"label_"))
    assert reader.columns == ["features_", "features", "label_", "label__"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1 f a:1", "no |"),
        (b"|f a", "no label"),
        (b"1 -2 |f a", "importance"),
        (b"1 1 0 7 |f a", "at most"),
        (b"1 |f:x a", "weight of the namespace"),
        (b"1 |f :1", "without a name"),
        (b"1 |f a:b", "no finite number"),
        (b"1 |f a:1e39", "float32"),
        (b"1 |f \xff", "UTF-8"),
    ],
)
def test_a_line_that_is_no_row_says_why(line: bytes, reason: str) -> None:
    found = VowpalReader((b"f",)).parse(np.frombuffer(b"1 |f a\n" + line + b"\n-1 |f b\n", np.uint8))
    assert [fault.line for fault in found.faults] == [1]
    assert reason in found.faults[0].reason
    assert found.batch["f"].to_pylist() == [[("a", 1.0)], [("b", 1.0)]]
