"""Arrays on disk come back as they were, as maps that nobody can write to; damaged files are told apart."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dfm.errors import DataError
from dfm.storage.arrays import array_bytes, distinct, parse_arrays, read_arrays, read_only, write_arrays

EVERY_TYPE = {
    "bytes": np.arange(3, dtype=np.uint8),
    "fields": np.arange(5, dtype=np.uint16),
    "ids": np.array([0, 2**32 - 1], np.uint32),
    "signed": np.array([-(2**31), 7, 9], np.int32),
    "counts": np.array([2**62, -1], np.int64),
    "linear": np.array([1.5, -0.0, np.inf], np.float32),
    "boundaries": np.array([np.pi], np.float64),
    "factors": np.arange(12, dtype=np.float32).reshape(3, 4),
    "empty": np.zeros(0, np.float32),
    "no factors": np.zeros((0, 8), np.float32),
}
METADATA = {"n_factored": "3", "account": json.dumps({"größe": [1, 2]})}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "deep" / "a.safetensors", EVERY_TYPE, METADATA)
    return tmp_path / "deep" / "a.safetensors"


def test_arrays_of_every_type_and_their_metadata_come_back(written):
    arrays, metadata = read_arrays(written)
    assert_same(arrays, EVERY_TYPE)
    assert metadata == METADATA


def test_the_public_safetensors_package_reads_the_same_file(written):
    assert_same(load_file(written), EVERY_TYPE)


def test_arrays_that_are_read_are_aligned_maps_that_cannot_be_written(written):
    arrays, _ = read_arrays(written)
    for name, array in arrays.items():
        assert not array.flags.writeable, name
        assert array.flags.aligned, name
    with pytest.raises(ValueError, match="read-only"):
        arrays["ids"][0] = 1


def test_strided_arrays_are_written_as_their_values(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_arrays(tmp_path / "a", {"column": table[:, 1], "turned": table.T})
    arrays, metadata = read_arrays(tmp_path / "a")
    assert_same(arrays, {"column": table[:, 1], "turned": table.T})
    assert metadata == {}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(written, monkeypatch):
    def broken(arrays: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("dfm.storage.arrays.save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        write_arrays(written, {"other": np.zeros(3, np.float32)})
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    assert_same(read_arrays(written)[0], EVERY_TYPE)


def test_a_file_that_was_mapped_keeps_its_values_when_it_is_replaced(written):
    before, _ = read_arrays(written)
    write_arrays(written, {name: array + 1 for name, array in EVERY_TYPE.items()})
    assert_same(before, EVERY_TYPE)


def test_equal_arrays_give_equal_bytes_that_parse_to_them():
    data = array_bytes(EVERY_TYPE)
    assert array_bytes(dict(reversed(EVERY_TYPE.items()))) == data
    arrays, metadata = parse_arrays(np.frombuffer(data, np.uint8))
    assert_same(arrays, EVERY_TYPE)
    assert metadata == {}


# ------------------------------------------------------------------------------------------- damaged files ----


def test_a_missing_or_truncated_file_is_damaged(written):
    data = written.read_bytes()
    for length in (0, 7, 8, 20, len(data) // 2, len(data) - 1):
        written.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"a\.safetensors is damaged .*; delete it and run again"):
            read_arrays(written)
    written.unlink()
    with pytest.raises(DataError, match=r"a\.safetensors is damaged"):
        read_arrays(written)


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_a_flipped_bit_of_an_array_is_found(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("flipped") / "a.safetensors"
    write_arrays(path, EVERY_TYPE)
    data = bytearray(path.read_bytes())
    body = 8 + struct.unpack("<Q", data[:8])[0]
    data[body + position % (len(data) - body)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged \(its checksums differ\)"):
        read_arrays(path)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=[3])},
        {"a": entry(shape=[-1, -2])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[4, 12])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(dtype="F16")},
        {"a": entry(shape=[1e300, 1e300])},
        {"a": {"dtype": "F32"}},
        {"a": [1, 2]},
        [1, 2],
        "text",
        None,
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_damaged(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(DataError, match="is damaged"):
        read_arrays(tmp_path / "a")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a").write_bytes(struct.pack("<Q", 2**63) + bytes(100))
    with pytest.raises(DataError, match="a header of 9223372036854775808 bytes"):
        read_arrays(tmp_path / "a")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_in_the_header_is_found_or_harmless(position, flip):
    raw = np.frombuffer(array_bytes(EVERY_TYPE), np.uint8).copy()
    header = 8 + int(raw[:8].view("<u8")[0])
    raw[position % header] ^= flip
    try:
        arrays, _ = parse_arrays(raw)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return
    assert sum(array.nbytes for array in arrays.values()) <= raw.size


def test_a_read_only_view_shares_memory_and_leaves_the_original_writable():
    array = np.zeros(3, np.float32)
    view = read_only(array)
    array[1] = 5.0
    assert view.tolist() == [0.0, 5.0, 0.0]
    assert (array.flags.writeable, view.flags.writeable) == (True, False)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5)), st.sampled_from([np.uint64, np.uint32, np.int64]))
def test_distinct_values_come_once_and_ascend(numbers, kind):
    values = np.array([number % 2**31 for number in numbers], kind)
    found = distinct(values)
    assert found.dtype == kind
    assert found.tolist() == sorted(set(values.tolist()))
