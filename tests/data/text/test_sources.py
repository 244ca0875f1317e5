"""Files cut into chunks: every line is in one chunk, once, wherever the cuts and blocks lie."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfm.data.text import sources
from dfm.data.text.sources import blocks, chunks_of, find_sources
from dfm.errors import DataError


def lines_of(path: Path, shard_bytes: int = 1 << 30, block_bytes: int = 1 << 20) -> list[bytes]:
    """All lines that the chunks of a file give, in their order."""
    found = []
    for chunk in chunks_of(find_sources([str(path)]), shard_bytes):
        for block in blocks(chunk, None, block_bytes):
            assert block.tobytes().endswith(b"\n")
            found += block.tobytes().split(b"\n")[:-1]
    return found


def expected(text: bytes) -> list[bytes]:
    return text.split(b"\n")[:-1] if text.endswith(b"\n") or not text else text.split(b"\n")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("ab\n", max_size=60).map(str.encode), st.integers(1, 30), st.integers(1, 9))
def test_every_line_is_in_one_chunk_once(tmp_path: Path, text: bytes, shard_bytes: int, block_bytes: int) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(text)
    assert lines_of(path, shard_bytes, block_bytes) == expected(text)


@pytest.mark.parametrize("others", [["d/a.csv"], ["./d/a.csv", "d/../d/*.csv"], ["file://{}/d/a.csv"], ["link.csv"]])
def test_a_file_that_is_named_in_several_ways_is_read_once(tmp_path: Path, monkeypatch, others: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.csv").write_text("label,x\n1,a\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "d" / "a.csv")
    assert [source.url for source in find_sources(["d/a.csv"])] == ["d/a.csv"]
    (found,) = find_sources(["d", *(name.format(tmp_path) for name in others)])
    assert found.url == str(tmp_path / "d" / "a.csv")


def test_a_pipe_is_refused_and_not_called_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe is a pipe or a device, .*: write it to a file first"):
        find_sources([str(tmp_path / "pipe")])


def test_a_server_without_parts_of_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,x\n" + "1,a\n" * 10_000)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            (source,) = find_sources([f"http://127.0.0.1:{server.server_port}/a.csv"])
            with pytest.raises(DataError, match=r"a.csv cannot be read from several places .*: download it first"):
                list(blocks(chunks_of([source], 5_000)[1], None, 1_000))
        finally:
            server.shutdown()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data))


TEXT = b"".join(b"line %d\n" % i for i in range(2000)) + b"the last one has no end"


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(TEXT), gzip.compress(TEXT[:5000]) + gzip.compress(TEXT[5000:]), bz2.compress(TEXT), zstd(TEXT)],
    ids=["gzip", "gzip of two members", "bz2", "zstd"],
)
def test_a_compressed_file_is_one_chunk_known_by_its_first_bytes(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "log.of.any.name"
    path.write_bytes(packed)
    assert len(chunks_of(find_sources([str(path)]), 100)) == 1
    assert lines_of(path, 100, 1000) == expected(TEXT)


def test_a_compressed_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(TEXT)[:-300])
    with pytest.raises(DataError, match=r"log\.gz cannot be read"):
        lines_of(path)


def test_a_mark_of_utf8_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    for name, data in (("a", b"\xef\xbb\xbfone\ntwo\n"), ("b", gzip.compress(b"\xef\xbb\xbfone\ntwo\n"))):
        (tmp_path / name).write_bytes(data)
        assert lines_of(tmp_path / name) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("a,b\n1,2\n".encode("utf-16"), r"is UTF-16, .* iconv -f UTF-16 -t UTF-8 log\.csv"),
        (gzip.compress("a,b\n1,2\n".encode("utf-16")), "is UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-le"), "zero bytes is no text .* iconv -f UTF-16LE"),
        (lzma.compress(b"a,b\n1,2\n"), "is compressed by xz"),
        (b"PK\x03\x04\x14\x00 and more", "is compressed by zip"),
    ],
    ids=["a mark", "a mark in gzip", "no mark", "xz", "zip"],
)
def test_what_is_no_text_in_utf8_is_named(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "log.csv").write_bytes(data)
    with pytest.raises(DataError, match=why):
        find_sources([str(tmp_path / "log.csv")])


def test_a_zero_byte_behind_the_first_line_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"a,b\n1,x\0y\n")
    assert lines_of(tmp_path / "log.csv") == [b"a,b", b"1,x\0y"]


def test_a_line_longer_than_a_block_is_whole_and_one_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"a\n" + b"x" * 100_000 + b"\nb\n")
    assert [len(line) for line in lines_of(path, 30_000, 1000)] == [1, 100_000, 1]
    monkeypatch.setattr(sources, "LONGEST_LINE", 50_000)
    with pytest.raises(DataError, match=r"log\.txt has a line of more than .*ends of lines are lost"):
        lines_of(path, 1 << 20, 1000)


def test_folders_globs_and_urls_name_files_in_order_and_hidden_ones_are_passed(tmp_path: Path) -> None:
    for name in ("day=2/b.txt", "day=1/a.txt", "day=1/_hidden.txt", ".also/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    expected = [("a.txt", "day=1/"), ("b.txt", "day=2/")]
    for path in (str(tmp_path), f"{tmp_path}/day=*/*.txt", f"{tmp_path}/day=*", f"{tmp_path}/*", f"file://{tmp_path}"):
        found = find_sources([path, path])
        assert [(source.url.rpartition("/")[2], source.partition) for source in found] == expected
    with pytest.raises(DataError, match=r"no file at .*nothing\*"):
        find_sources([f"{tmp_path}/nothing*"])
    (tmp_path / "c").write_bytes(b"PAR1 and more")
    with pytest.raises(DataError, match="is Parquet already"):
        find_sources([str(tmp_path / "c")])


def test_the_folders_that_a_path_ends_in_are_columns_whatever_was_named(tmp_path: Path) -> None:
    for name in ("log/day=1/hour=06/a.txt", "log/day=1/hour=07/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    log, expected = f"{tmp_path}/log", [("a.txt", "day=1/hour=06/"), ("b.txt", "day=1/hour=07/")]

    def found(*paths: str, known: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        sources = find_sources(paths, known=known)
        return [(source.url.rpartition("/")[2], source.partition) for source in sources]

    assert found(f"{log}/day=1") == found(f"{log}/day=*/hour=*") == found(f"file://{log}/day=1/") == expected
    assert found(f"{log}/day=1/hour=06", f"{log}/day=1/hour=07/b.txt") == expected
    assert found(f"{log}/day=1", known=("day",)) == [("a.txt", "hour=06/"), ("b.txt", "hour=07/")]
    assert found(log, known=("day",)) == expected
