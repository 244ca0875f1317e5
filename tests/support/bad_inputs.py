"""Everything that can be wrong with the rows of a job, as a table: how to make it, what dfm says, what the site says.

`tests/test_bad_input.py` runs each through the command line and the library; the page "Bad input" of the site includes
`markdown()`. Imports nothing from dfm.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.support.shards import write_shard

ROWS, ROW_GROUP = 40, 16
"""Of each of the two shards."""
BAD_ROW = 21
"""Stands in row group 1, row 5 of the second shard."""
PLACE = r"b\.parquet, row group 1, row 5"
Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class BadInput:
    """One thing that is wrong. `spoil` works on a folder with the good shards a.parquet and b.parquet.

    message: a pattern of what is said, empty where dfm copes; code: the exit code. skipped: how many rows are left out
    with on_bad_rows = "skip"; 0 where it does not apply. meets: when the spoiling happens, "before" the job or at one
    of its events. changes: settings beside the usual ones.
    """

    what: str
    answer: str
    spoil: Spoil
    message: str = ""
    code: int = 3
    skipped: int = 0
    meets: str = "before"
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def good_columns(first: int = 0, n_rows: int = ROWS) -> dict[str, Any]:
    """Rows that differ, with labels of both classes."""
    numbers = range(first, first + n_rows)
    return {
        "label": [zlib.crc32(b"%d" % n) % 2 for n in numbers],
        "w": [1.0 + n % 3 for n in numbers],
        "C": [f"c{n % 7}" for n in numbers],
        "I": [float(n) for n in numbers],
        "L": [[f"l{n % 3}", "x"][: n % 3] for n in numbers],
    }


def write_good(folder: Path) -> None:
    """The two shards."""
    write_shard(folder / "a.parquet", good_columns(), ROW_GROUP)
    write_shard(folder / "b.parquet", good_columns(ROWS), ROW_GROUP)


def column(name: str, change: Callable[[list[Any]], Any], first: int = ROWS) -> Spoil:
    """Replace a column of the second shard; None leaves it out."""

    def spoil(folder: Path) -> None:
        columns = good_columns(first)
        values = change(columns.pop(name))
        if values is not None:
            columns[name] = values
        write_shard(folder / "b.parquet", columns, ROW_GROUP)

    return spoil


def value(name: str, bad: Any, kind: pa.DataType | None = None) -> Spoil:
    """One bad value in the second shard."""
    return column(name, lambda values: pa.array([*values[:BAD_ROW], bad, *values[BAD_ROW + 1 :]], kind))


def both(name: str, change: Callable[[list[Any]], Any]) -> Spoil:
    """Replace a column of both shards."""

    def spoil(folder: Path) -> None:
        for shard, first in (("a", 0), ("b", ROWS)):
            columns = good_columns(first)
            write_shard(folder / f"{shard}.parquet", {**columns, name: change(columns[name])}, ROW_GROUP)

    return spoil


def bytes_of(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the second shard."""

    def spoil(folder: Path) -> None:
        path = folder / "b.parquet"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def damage_second_row_group(data: bytes) -> bytes:
    """Overwrite the pages of row group 1 of a file whose footer stays sound."""
    import io

    import pyarrow.parquet as pq

    start = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).dictionary_page_offset
    return data[:start] + b"\xff" * 30 + data[start + 30 :]


def no_rows(folder: Path) -> None:
    for name in "ab":
        write_shard(folder / f"{name}.parquet", pa.table(good_columns()).slice(0, 0))


def no_shards(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.parquet").unlink()


def extra_column(folder: Path) -> None:
    columns = good_columns(ROWS)
    write_shard(folder / "b.parquet", {"new": columns["C"], **columns}, ROW_GROUP)


def copy_a(folder: Path) -> None:
    shutil.copy(folder / "a.parquet", folder / "b.parquet")


def touch_b(folder: Path) -> None:
    os.utime(folder / "b.parquet", (1, 1_700_000_000))


def remove_b(folder: Path) -> None:
    (folder / "b.parquet").unlink()


TABLE: dict[str, BadInput] = {
    "truncated": BadInput(
        "a file that was cut short", "the file, before anything is read",
        bytes_of(lambda data: data[:-20]), r"b\.parquet cannot be read as Parquet \(.*\); replace",
    ),
    "not Parquet": BadInput(
        "a file that is no Parquet", "the same",
        bytes_of(lambda data: b"label,C\n1,a\n" * 20), r"b\.parquet cannot be read as Parquet .*replace the file",
    ),
    "damaged pages": BadInput(
        "pages that do not decode, or whose checksum differs", "the file and the row group",
        bytes_of(damage_second_row_group), r"b\.parquet, row group 1, cannot be read as Parquet .*replace the file",
    ),
    "zero rows": BadInput(
        "shards without any row", "how many there are; an empty shard beside others is fine", no_rows,
        r"no rows in 2 shards at .*: every shard is empty",
    ),
    "zero shards": BadInput(
        "a path, folder or glob that names no shard", "the path", no_shards, r"no Parquet file at '.*': check the path",
    ),
    "missing column": BadInput(
        "a shard that lacks a column of the schema", "the shard, the column, and the columns that it has",
        column("C", lambda values: None), r"b\.parquet has no column 'C': it has label, w, I, L\. Give it",
    ),
    "changed type": BadInput(
        "a column that is a category in one shard and a list in another",
        "the shard, the column and its type",
        column("C", lambda values: [[text] for text in values]),
        r"b\.parquet: column 'C' holds lists \(list<.*>\), but the schema calls it a single category; write one",
    ),
    "changed type, same values": BadInput(
        "a column that changes between integer, float, text and dictionary", "nothing: 5, 5.0 and '5' are one value",
        column("I", lambda values: [f"{number:.0f}" for number in values]), code=0,
    ),
    "extra column": BadInput(
        "a shard with more columns than the schema names", "nothing: they are not read",
        extra_column, code=0,
    ),
    "label out of domain": BadInput(
        "a label that is neither 0 nor 1", "shard, row group, row, column, value", value("label", 2),
        PLACE + r": column 'label': label is neither 0 nor 1 \(2\)\. Repair the row, or set data\.on", skipped=1,
    ),
    "a share, and sampled negatives": BadInput(
        "a label between 0 and 1 where `data.sample_negatives` leaves negative rows out",
        "shard, row group, row, column, value", value("label", 0.25),
        r"b\.parquet: row group 1, row 5: column 'label' holds the share 0\.25, and data\.sample_negatives = 0\.5",
        changes={"data": {"sample_negatives": 0.5}, "schema": {"weight": ""}},
    ),
    "null label": BadInput(
        "a missing label", "the same", value("label", None),
        PLACE + r": column 'label': label is missing \(None\)\. Repair the row", skipped=1,
    ),
    "NaN number": BadInput(
        "NaN or infinity among numbers", "the same", value("I", float("nan")),
        PLACE + r": column 'I': not finite \(nan\)\. Repair the row, .*\. Of a job, schema\.nan = \"missing\" takes",
        skipped=1,
    ),
    "infinite label": BadInput(
        "a label that is NaN or infinite", "the same", value("label", float("inf"), pa.float64()),
        PLACE + r": column 'label': label is not finite \(inf\)\. Repair the row", skipped=1,
    ),
    "text for a number": BadInput(
        "text that is no number in a numeric column", "the same",
        column("I", lambda values: [*map(str, values[:BAD_ROW]), "many", *map(str, values[BAD_ROW + 1 :])]),
        PLACE + r": column 'I': not a number \('many'\)\. Repair the row", skipped=1,
    ),
    "negative weight": BadInput(
        "a weight that is negative, missing or no number", "the same", value("w", -0.5),
        PLACE + r": column 'w': weight is negative \(-0\.5\)\. Repair the row", skipped=1,
    ),
    "10 MB string": BadInput(
        "a category of 10 MB", "nothing: it is a category like any other", value("C", "x" * 10_000_000), code=0,
    ),
    "10 MB string for a number": BadInput(
        "10 MB of text in a numeric column", "the place, and the first 80 characters",
        column("I", lambda values: [*map(str, values[:BAD_ROW]), "y" * 10_000_000, *map(str, values[BAD_ROW + 1 :])]),
        PLACE + r": column 'I': not a number \('y{79}\)\. Repair the row", skipped=1,
    ),
    "100,000-element list": BadInput(
        "a list of 100,000 elements", "nothing: each is a category",
        value("L", [f"e{n}" for n in range(100_000)]), code=0,
    ),
    "all-missing column": BadInput(
        "a column in which everything is missing", "nothing: missing is a category of its own",
        both("I", lambda values: pa.nulls(len(values))), code=0,
    ),
    "one class": BadInput(
        "labels of one class only", "what was looked for, what was found",
        both("label", lambda values: [0] * len(values)),
        r"all 80 rows to train on are negative: 1 is positive, and column 'label' holds 0\. Name the positive labels",
    ),
    "all rows bad": BadInput(
        "more bad rows than data.max_bad_fraction allows, where they are skipped", "the count, and the first bad row",
        both("label", lambda values: [7] * len(values)),
        r"80 of 80 rows are bad, more than data\.max_bad_fraction = 0\.01 allows; the first: .*a\.parquet, row group 0",
        changes={"data": {"on_bad_rows": "skip", "max_bad_fraction": 0.01}},
    ),
    "duplicate shards": BadInput(
        "a shard twice: a copy, a link, or one to train and to validate on",
        "both names (a path named twice is read once)", copy_a,
        r"b\.parquet is the same file as .*a\.parquet, or a copy of it: its 40 rows would count twice; leave it out",
    ),
    "shard that disappeared": BadInput(
        "a shard that disappears while the job runs and is needed again", "the shard", remove_b,
        r"b\.parquet is gone: it was there when the job began; restore it or start the job again", meets="plan",
    ),
    "shard that changed": BadInput(
        "a shard whose size, time or entity tag changes while the job runs, and that is needed again",
        "the shard, what it was and what it is", touch_b,
        r"b\.parquet changed since the job began: it had \d+ bytes of .*; restore it, or start the job again",
        meets="plan",
    ),
    "shard gone after hashing": BadInput(
        "a shard that disappears or changes after it was hashed", "nothing, as long as its partitions are in the cache",
        remove_b, code=0, meets="prepared",
    ),
}  # fmt: skip
ELSEWHERE = (
    (
        "a number so far from those of training that a prediction is no finite number, of at most one row in a hundred "
        "of a batch: `evaluate`, `importance` and `publish`",
        "its place, column and value; with `--on-bad-rows skip` the row is left out",
        3,
    ),
    (
        "the same of more rows of a batch, in `evaluate`, `importance` and `publish`",
        "how many: the model is at fault",
        5,
    ),
    ("the same in `predict`", "a warning, how many; what comes out is written", 0),
    ("the same in a request to the service", "its place; the request is refused with 422", "–"),
    ("a checkpoint of other data", "the shards that changed, were added or are gone", 2),
    ("a file that may not be read", "the file: permission denied; check its access rights", 3),
    (
        "a full disk below the partition cache, or a cache that cannot be written",
        "the file, the free bytes, what to do",
        8,
    ),
    ("a store that throttles or fails for longer than a minute", "the URL, what it answered last", 8),
    ("a store that denies access, or a process without credentials", "the URL; check credentials and rights", 8),
    ("a password or a signature in a URL, a secret among the storage options", "the key; never the secret", 2),
)
"""What the same section tells and other tests look at."""


def markdown() -> str:
    """The table of the site."""
    lines = ["| what is wrong | dfm names | exit code | skipping |", "|---|---|---|---|"]
    for case in TABLE.values():
        skipping = "leaves the row out" if case.skipped else ""
        lines.append(f"| {case.what} | {case.answer} | {case.code or '0, trains'} | {skipping} |")
    lines += [f"| {what} | {answer} | {code} | |" for what, answer, code in ELSEWHERE]
    return "\n".join(lines)
