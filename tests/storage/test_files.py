"""Small files behave alike on local paths, file:// URLs and object stores (here: fsspec's memory)."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from dfm.errors import StorageError
from dfm.storage import files


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
    url = files.join(folder, "a/b.json")
    assert not files.exists(url)
    files.write_bytes(url, b"one")
    files.write_bytes(url, b"two")
    assert files.exists(url)
    assert files.read_bytes(url) == b"two"
    files.write_bytes(files.join(folder, "c"), b"")
    assert files.names_in(folder) == ["c"]
    assert files.names_in(files.join(folder, "a")) == ["b.json"]
    files.remove(url)
    files.remove(url)
    assert not files.exists(url)


def test_a_missing_folder_has_no_files_and_a_missing_file_is_not_found(folder):
    assert files.names_in(files.join(folder, "nowhere")) == []
    with pytest.raises(FileNotFoundError):
        files.read_bytes(files.join(folder, "nothing"))


def test_a_stream_that_fails_leaves_the_old_file_and_no_rest(folder):
    url = files.join(folder, "part")
    with files.writing(url) as stream:
        stream.write(b"old")

    def fail() -> None:
        with files.writing(url) as stream:
            stream.write(b"half")
            raise RuntimeError("the task was killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert files.read_bytes(url) == b"old"
    assert files.names_in(folder) == ["part"]


def test_local_urls_are_told_from_stores():
    assert files.is_local("relative/path")
    assert files.is_local("/absolute")
    assert files.is_local("file:///absolute")
    assert not files.is_local("s3://bucket/key")
    assert files.local_path("file:///a/b") == Path("/a/b")
    assert files.local_path("~/a") == Path.home() / "a"
    assert files.local_path("~nosuchuser/a") == Path("~nosuchuser/a"), "a folder may be called so"
    assert files.absolute("~nosuchuser/a") == os.path.abspath("~nosuchuser/a")
    assert files.join("s3://bucket/folder/", "name") == "s3://bucket/folder/name"


def test_a_file_is_created_once_and_the_first_one_stays(folder):
    url = files.join(folder, "deep/manifest.json")
    files.create_bytes(url, b"first")
    with pytest.raises(FileExistsError):
        files.create_bytes(url, b"second")
    assert files.read_bytes(url) == b"first"
    assert files.names_in(files.join(folder, "deep")) == ["manifest.json"]


def test_of_many_who_create_a_file_at_once_one_wins_and_its_bytes_are_whole(tmp_path):
    url = f"{tmp_path}/lock"
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            files.create_bytes(url, bytes([number]) * 100_000)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert files.read_bytes(url) == bytes([won.index(True)]) * 100_000
    assert files.names_in(str(tmp_path)) == ["lock"]


def test_a_disk_without_hard_links_still_lets_one_writer_win(tmp_path, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(files.os, "link", refuse)
    url = f"{tmp_path}/lock"
    files.create_bytes(url, b"first")
    with pytest.raises(FileExistsError):
        files.create_bytes(url, b"second")
    assert files.read_bytes(url) == b"first"
    assert files.names_in(str(tmp_path)) == ["lock"]


def test_folders_are_listed(folder):
    for name in ("checkpoint/1/a", "checkpoint/1/b/c", "checkpoint/2/a", "model/a"):
        files.write_bytes(files.join(folder, name), b"x")
    assert files.folders_in(folder) == ["checkpoint", "model"]
    assert files.folders_in(files.join(folder, "checkpoint")) == ["1", "2"]
    assert files.folders_in(files.join(folder, "nowhere")) == []


def test_a_local_store_of_another_name_replaces_files_in_one_step(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/new/record.json"
    files.write_bytes(url, b"1" * 100)
    before = (tmp_path / "new" / "record.json").stat().st_ino
    files.write_bytes(url, b"2" * 100)
    assert (tmp_path / "new" / "record.json").stat().st_ino != before
    assert files.read_bytes(url) == b"2" * 100


def test_what_a_killed_process_left_half_written_goes_after_an_hour_and_nothing_else(tmp_path):
    old = time.time() - 2 * files.ABANDONED_AFTER
    left, others = f".run.json.{'0f' * 16}.part", (f".notes.txt.{'0f' * 16}.part", ".run.json.part", "run.json")
    for name in (left, *others):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (old, old))
    at_work = tmp_path / f".run.json.{'1e' * 16}.part"
    at_work.write_bytes(b"x")
    files.remove_abandoned(str(tmp_path), ["run.json"])
    assert {path.name for path in tmp_path.iterdir()} == {at_work.name, *others}


def test_a_probe_has_the_name_of_a_temporary_file_at_once_so_that_a_later_run_finds_it(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise OSError("as where a process is killed: it puts nothing in place and tidies nothing up")

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(OSError, match="killed"):
        files.check_writable(str(tmp_path))
    monkeypatch.undo()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert len(list(tmp_path.iterdir())) == 1
    files.remove_abandoned(str(tmp_path), ["run.json"])
    assert not list(tmp_path.iterdir())


def test_a_killed_probe_of_a_store_is_taken_away_by_the_next_one(monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(files, "remove", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        files.check_writable(url)
    monkeypatch.undo()
    assert len(files.names_in(url)) == 1
    files.check_writable(url)
    assert files.names_in(url) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_disk_that_fails_is_told_with_its_path_and_what_to_do(tmp_path, monkeypatch, number):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"x")
    for broken, act in (("read_bytes", files.read_bytes), ("exists", files.exists), ("stat", files.size_of)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, broken, fail)
            with pytest.raises(StorageError, match=f"{path} cannot be read: .*; check the disk or the share"):
                act(str(path))
