"""Small files behave alike on local paths, file:// URLs and object stores (here: fsspec's memory)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dfm import storage


@pytest.fixture(params=["path", "file://", "memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory://":
        name = f"memory://{uuid.uuid4().hex}"
        yield name
        store = fsspec.filesystem("memory")
        if store.exists(name):
            store.rm(name, recursive=True)
    else:
        yield f"{request.param}{tmp_path}/new" if request.param == "file://" else f"{tmp_path}/new"


def test_what_was_written_is_read_and_listed_and_removed(folder):
    url = storage.join(folder, "a/b.json")
    assert not storage.exists(url)
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"two"
    storage.write_bytes(storage.join(folder, "c"), b"")
    assert storage.names_in(folder) == ["c"]
    assert storage.names_in(storage.join(folder, "a")) == ["b.json"]
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_a_missing_folder_has_no_files_and_a_missing_file_is_not_found(folder):
    assert storage.names_in(storage.join(folder, "nowhere")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "nothing"))


def test_a_stream_that_fails_leaves_the_old_file_and_no_rest(folder):
    url = storage.join(folder, "part")
    with storage.writing(url) as stream:
        stream.write(b"old")

    def fail() -> None:
        with storage.writing(url) as stream:
            stream.write(b"half")
            raise RuntimeError("the task was killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert storage.read_bytes(url) == b"old"
    assert storage.names_in(folder) == ["part"]


def test_local_urls_are_told_from_stores():
    assert storage.is_local("relative/path")
    assert storage.is_local("/absolute")
    assert storage.is_local("file:///absolute")
    assert not storage.is_local("s3://bucket/key")
    assert storage.local_path("file:///a/b") == Path("/a/b")
    assert storage.join("s3://bucket/folder/", "name") == "s3://bucket/folder/name"
