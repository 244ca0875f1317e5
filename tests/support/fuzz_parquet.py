"""Reads mutated Parquet files in a process of its own: `python tests/fuzz_parquet.py FOLDER FIRST COUNT [SEED…]`.

Prints the number of a mutation before it is read, so that the parent knows which one ended or stopped the process; then
one line of JSON that counts the outcomes. An outcome that must not be raises.
"""

from __future__ import annotations

import io
import json
import random
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfm.data.chunks import Chunk, hash_units
from dfm.data.parquet import Unit, describe_shard
from dfm.data.reading import Reading
from dfm.data.schema import Schema, resolve
from dfm.errors import DataError

COLUMNS = ["label", "w", "C", "I", "L"]
SCHEMA = resolve(Schema(weight="w", categorical=["C"], numeric=["I"], lists=["L"]), COLUMNS)
MEMORY = 6 << 30
"""Bytes of address space: a mutated length that asks for more gets an error instead of the machine."""
LARGEST = 3.4028234663852886e38
"""The largest number of 32 bits; a weight beyond it is a bad one."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
    {"compression": "none", "use_dictionary": True, "write_page_checksum": True, "data_page_version": "2.0"},
    {"compression": "zstd", "write_page_checksum": True},
    {"compression": "snappy"},
    {"compression": "none", "use_dictionary": False},
    {"compression": "none", "use_dictionary": ["C"], "data_page_version": "2.0"},
    {"compression": "gzip", "column_encoding": {"I": "BYTE_STREAM_SPLIT", "label": "DELTA_BINARY_PACKED"},
     "use_dictionary": False},
)  # fmt: skip


def table() -> pa.Table:
    """200 rows, a few of them bad."""
    n = range(200)
    return pa.table(
        {
            "label": pa.array([i % 2 if i % 50 else 7 for i in n], pa.int64()),
            "w": pa.array([1.0 + i % 3 for i in n]),
            "C": pa.array([None if i % 11 == 0 else f"c{i % 7}" for i in n]),
            "I": pa.array([float(i) if i % 40 else None for i in n]),
            "L": pa.array([[f"l{i % 3}", "x"][: i % 3] for i in n]),
        }
    )


def mutate(data: bytes, draw: random.Random, stop: int) -> bytes:
    """Change some of the bytes before `stop`."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        at = draw.randrange(4, stop)
        length = draw.choice([1, 1, 2, 4, 16])
        kind = draw.choice(["flip", "set", "fill", "copy", "huge"])
        if kind == "flip":
            out[at] ^= 1 << draw.randrange(8)
        elif kind == "set":
            out[at : at + length] = draw.randbytes(len(out[at : at + length]))
        elif kind == "fill":
            out[at : at + length] = bytes([draw.choice([0, 127, 128, 255])]) * len(out[at : at + length])
        elif kind == "copy":
            source = draw.randrange(4, stop)
            out[at : at + length] = out[source : source + len(out[at : at + length])].ljust(
                len(out[at : at + length]), b"\0"
            )
        else:
            out[at : at + 5] = b"\xff\xff\xff\xff\x0f"[: len(out[at : at + 5])]
    return bytes(out)


def resize(data: bytes, draw: random.Random) -> bytes:
    """Cut the file short, or cut a piece out of it, or put one in."""
    at, length = draw.randrange(len(data)), draw.randrange(1, 64)
    return draw.choice([data[:at], data[:at] + data[at + length :], data[:at] + draw.randbytes(length) + data[at:]])


def read(path: Path, cache: Path) -> Chunk:
    """All rows of a file, hashed by dfm, bad ones skipped."""
    shard = describe_shard(str(path))
    reading = Reading(SCHEMA, 12, "classification", on_bad_rows="skip", cache=str(cache))
    try:
        return hash_units(reading, [Unit(shard, 0, shard.n_rows)], 1, None)
    finally:
        for file in cache.glob("*"):
            file.unlink()


def plain(path: Path) -> tuple[int, list[tuple[float, float]]]:
    """Rows of a file, and label and weight of the good ones, in plain Python.

    Row group by row group, as dfm reads: where a footer lies about their lengths, Arrow's read of the whole file pairs
    rows otherwise.
    """
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(group, ["label", "w", "I"]) for group in range(file.num_row_groups)]
    rows = [row for group in groups for row in group.to_pylist()]
    good = []
    for row in rows:
        label, weight, number = row["label"], row["w"], row["I"]
        if label not in (0, 1) or weight is None or not 0 <= weight <= LARGEST:
            continue
        if number is not None and not abs(number) < float("inf"):
            continue
        good.append((float(np.float32(label)), float(np.float32(weight))))
    return len(rows), good


def same(left: Chunk, right: Chunk) -> bool:
    """Whether two chunks hold the same rows and counts."""
    arrays = ("indptr", "indices", "fields", "values", "labels", "weights")
    equal = all(np.array_equal(getattr(left.rows, name), getattr(right.rows, name)) for name in arrays)
    return equal and (left.account.read, left.account.accepted) == (right.account.read, right.account.accepted)


def one(number: int, path: Path, cache: Path, bases: list[tuple[bytes, Chunk]]) -> str:
    """Mutate, read, judge: the outcome in a word."""
    draw = random.Random(number)
    variant = number % len(VARIANTS)
    data, sound = bases[variant]
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    where = draw.choice(["pages", "pages", "footer", "size"])
    if where == "pages":
        changed = mutate(data, draw, footer)
    elif where == "footer":
        changed = data[:footer] + mutate(b"1234" + data[footer:], draw, len(data) - footer + 4)[4:]
    else:
        changed = resize(data, draw)
    path.write_bytes(changed)
    try:
        chunk = read(path, cache)
    except DataError as error:
        if path.name not in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"{number}: a message that is too long, or does not name the file") from error
        return "refused"
    account = chunk.account
    assert account.read == account.accepted + account.rejected == chunk.rows.n_rows + account.rejected, number
    if same(chunk, sound):
        return "unchanged"
    assert where != "pages" or not VARIANTS[variant].get("write_page_checksum"), f"{number}: a checksum did not help"
    n_rows, good = plain(path)
    assert account.read == n_rows, f"{number}: {account.read} rows read, {n_rows} are there"
    assert list(zip(chunk.rows.labels.tolist(), chunk.rows.weights.tolist(), strict=True)) == good, number
    return "read as it is now"


def main(folder: Path, first: int, count: int) -> None:
    """Read mutations first, first + 1, … and print what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cache, path = folder / "cache", folder / "fuzzed.parquet"
    bases = []
    for options in VARIANTS:
        sink = io.BytesIO()
        pq.write_table(table(), sink, row_group_size=64, **options)
        path.write_bytes(sink.getvalue())
        bases.append((sink.getvalue(), read(path, cache)))
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        outcomes[one(number, path, cache, bases)] += 1
    print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
