"""Files of the cache that somebody, or a disk, has changed: what is opened is what was written, or it is told."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data.partition import SparsePartition
from dfm.errors import DataError

PARTITION = SparsePartition(
    np.array([0, 2, 3, 5]),
    np.array([0, 1, 2, 0, 1], np.uint32),
    np.array([0.5, 2.0], np.float32),
    np.array([0, 1, 1], np.float32),
    np.array([1, 2, 1], np.float32),
    np.array([3, 7, 900], np.uint32),
    2,
    2,
    np.array([0, 1, 1], np.uint16),
)


def written() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        PARTITION.save(Path(folder) / "partition")
        return (Path(folder) / "partition").read_bytes()


CONTENT = written()


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """The file with a part of it taken out, moved, or put in place of another; or with other bytes in it."""
    start = draw(st.integers(0, len(CONTENT)))
    stop = draw(st.integers(start, min(len(CONTENT), start + 64)))
    put = draw(st.one_of(st.binary(max_size=64), st.just(CONTENT[start:stop] * 2), st.just(b"")))
    return CONTENT[:start] + put + CONTENT[stop:]


def check(content: bytes, path: Path) -> None:
    """The file is refused, or opened as what was written."""
    path.write_bytes(content)
    try:
        found = SparsePartition.open(path)
    except DataError:
        return
    for name, array in PARTITION._arrays().items():
        assert np.array_equal(getattr(found, name), array), name
        assert getattr(found, name).dtype == array.dtype
    assert (found.n_factored, found.n_implicit) == (PARTITION.n_factored, PARTITION.n_implicit)


@given(changed())
def test_a_changed_partition_is_told_or_is_the_same(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(content, Path(folder) / "partition")


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(tmp_path: Path) -> None:
    for at in range(len(CONTENT)):
        for bit in (0, 1, 4):
            flipped = bytearray(CONTENT)
            flipped[at] ^= 1 << bit
            check(bytes(flipped), tmp_path / "partition")


def test_a_damaged_partition_is_named(tmp_path: Path) -> None:
    (tmp_path / "partition").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"{tmp_path}/partition is damaged"):
        SparsePartition.open(tmp_path / "partition")
