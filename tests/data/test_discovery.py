"""Every file of rows is found, whatever its folders are called or linked; nothing else is, and nothing in silence."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from dfm.data.discovery import FoundFile, find_files, partition_columns
from dfm.data.text.sources import find_sources
from dfm.errors import DataError, StorageError
from dfm.storage import files, listing
from dfm.storage.ownership import Ledger


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"label": [0, 1]}), sink)
    return bytes(sink.getvalue())


ROWS = parquet_bytes()


@pytest.fixture(params=["folder", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk and one in an object store."""
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def put(folder: str, *names: str, data: bytes = ROWS) -> None:
    for name in names:
        files.write_bytes(f"{folder}/{name}", data)


def names(folder: str, path: str = "") -> list[str]:
    start = folder.removeprefix("memory://")
    found = find_files(f"{folder}/{path}".rstrip("/"), {})
    return sorted(file.url.partition(start)[2].lstrip("/") for file in found)


# --------------------------------------------------------------------------------------------------- links ----


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder whose second day, and the file of whose first, are links to a store elsewhere."""
    for day in "12":
        put(str(tmp_path), f"store/day={day}/a.parquet")
    data = tmp_path / "data"
    (data / "day=1").mkdir(parents=True)
    (data / "day=1" / "a.parquet").symlink_to(tmp_path / "store/day=1/a.parquet")
    (data / "day=2").symlink_to(tmp_path / "store/day=2")
    return data


@pytest.mark.parametrize("path", ["", "*/*.parquet", "day=*/*.parquet", "day=*", "*", "**/*.parquet", "day=?/a*"])
def test_folders_and_files_that_are_links_are_followed(linked: Path, path: str) -> None:
    assert names(str(linked), path) == ["day=1/a.parquet", "day=2/a.parquet"]


@pytest.mark.parametrize("path", ["", "**/*.parquet", "*"])
def test_a_link_to_a_folder_above_and_a_second_way_to_a_folder_add_nothing(linked: Path, path: str) -> None:
    (linked / "up").symlink_to(linked)
    (linked / "further").symlink_to(linked.parent)
    (linked / "first").symlink_to(linked / "day=1")
    assert names(str(linked), path) == ["day=1/a.parquet", "day=2/a.parquet"]


def test_a_link_that_leads_nowhere_is_no_silence(linked: Path) -> None:
    (linked / "b.parquet").symlink_to(linked / "nowhere")
    assert "b.parquet" in names(str(linked)), "to be told when its footer is read"


# --------------------------------------------------------------------------------------------------- names ----


@pytest.fixture(params=[errno.EIO, errno.EACCES])
def kept_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the system list no folder whose path ends in some way; a test may be root, whom no permission stops."""

    def keep_from(end: str) -> None:
        def refusing(list_it: Callable[[str], Any], path: str = ".") -> Any:
            if str(path).endswith(end):
                raise OSError(request.param, os.strerror(request.param), str(path))
            return list_it(path)

        for name in ("scandir", "listdir"):
            monkeypatch.setattr(os, name, functools.partial(refusing, getattr(os, name)))

    return keep_from


@pytest.mark.parametrize("path", ["", "day=*", "day=*/*.parquet", "**/*.parquet", "*/*"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    path: str, tmp_path: Path, kept_from: Callable[[str], None]
) -> None:
    put(str(tmp_path), "day=1/a.parquet", "day=2/a.parquet", "_temporary/0/a.parquet")
    kept_from("/_temporary")
    assert names(str(tmp_path), path) == ["day=1/a.parquet", "day=2/a.parquet"]
    kept_from("/day=2")
    with pytest.raises(DataError, match=r"cannot list '.*day=2'. Without a folder its rows would be missing"):
        names(str(tmp_path), path)
    if path != "day=*":  # a glob of texts names files
        with pytest.raises(DataError, match=r"cannot list '.*day=2'. Without a folder its rows would be missing"):
            find_sources([f"{tmp_path}/{path}".rstrip("/")])


@pytest.mark.parametrize("path", ["data", "data/day=*/*.parquet", "data/**/*.parquet"])
def test_texts_that_are_links_are_found(path: str, linked: Path) -> None:
    for found in (linked.parent / "store").rglob("*.parquet"):
        found.write_bytes(b"1 1:1\n")
    (linked / "day=3").symlink_to(linked / "day=2")  # the same rows once more
    (linked / "day=1" / "again").symlink_to(linked)
    assert [source.partition for source in find_sources([f"{linked.parent}/{path}"])] == ["day=1/", "day=2/"]


class Walked(MemoryFileSystem):
    """A filesystem that has no search of its own, as HDFS; one of its folders cannot be listed."""

    protocol = "walked"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    find, glob = AbstractFileSystem.find, AbstractFileSystem.glob
    refused = ""

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        if self.refused and path.endswith(self.refused):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return super().ls(path, detail, **more)


@pytest.mark.parametrize("rest", ["", "/day=*/*.parquet", "/**/*.parquet"])
def test_a_folder_that_another_filesystem_cannot_list_is_an_error_too(rest: str) -> None:
    filesystem, base = Walked(skip_instance_cache=True), f"/{uuid.uuid4().hex}"
    for name in ("day=1/a.parquet", "day=2/a.parquet", "_temporary/a.parquet"):
        filesystem.pipe_file(f"{base}/{name}", ROWS)

    def found() -> list[str]:
        names = (
            listing.matching(filesystem, base, rest, False) if rest else listing.files_below(filesystem, base, False)
        )
        return sorted(name.removeprefix(f"{base}/") for name in names if "/day=" in name)

    filesystem.refused = "_temporary"
    assert found() == ["day=1/a.parquet", "day=2/a.parquet"]
    filesystem.refused = "day=2"
    with pytest.raises(OSError, match="day=2"):
        found()


@pytest.mark.parametrize(
    "name", ["[prod]", "clicks[2026]", "what?", "a*b", "kind=[1]", "x[", "ünïcode ☃", "a b", "100%"]
)
def test_names_with_the_characters_of_globs_are_names_where_they_are_there(folder: str, name: str) -> None:
    put(folder, f"{name}/day=1/a.parquet", "p/day=1/b.parquet")
    expected = [f"{name}/day=1/a.parquet"]
    for path in ("", "/day=1", "/day=1/a.parquet", "/day=*", "/*/*.parquet", "/**/*"):
        assert names(folder, name + path) == expected, path
    put(folder, f"{name}/part[0].parquet")
    assert names(folder, f"{name}/part[0].parquet") == [f"{name}/part[0].parquet"]
    assert names(folder, f"{name}/*.parquet") == [f"{name}/part[0].parquet"]


def test_files_without_a_suffix_are_taken_where_they_begin_as_parquet_does(folder: str) -> None:
    put(folder, "000000_0", "part-00000-6d", "B.PARQUET", "c.Parq", "day=1/000001_0", "a.parquet")
    put(folder, "LICENSE", "notes.txt", "empty", data=b"text")
    assert names(folder) == ["000000_0", "B.PARQUET", "a.parquet", "c.Parq", "day=1/000001_0", "part-00000-6d"]


def test_what_may_be_rows_and_is_left_out_is_named(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "a.parquet", "a.parquet.bak", "b.tmp")
    put(folder, "notes.txt", data=b"text")
    with caplog.at_level(logging.INFO, logger="dfm"):
        assert names(folder) == ["a.parquet"]
    assert [(record.levelname, record.message.partition(": ")[2]) for record in caplog.records] == [
        ("WARNING", "2 files (a.parquet.bak, …) left out, of another suffix"),
        ("INFO", "1 file (notes.txt) left out, no Parquet"),
    ]
    assert names(folder, "*.bak") == ["a.parquet.bak"], "a glob takes files of any name"


def test_a_folder_of_other_files_says_how_many_and_what_would_take_them(folder: str) -> None:
    put(folder, "a.bak", "b.bak", data=b"1,2")
    with pytest.raises(DataError, match=r"but 2 other files \(a\.bak, …\), no Parquet: .*a glob takes"):
        names(folder)


# ------------------------------------------------------------------------------------ dfm's own, and tables ----


def test_what_dfm_wrote_below_the_data_is_no_data(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "a.parquet", "scored/mine.parquet", "golden-0123456789abcdef.parquet")
    for kind, made in (("predictions", "part-00000.parquet"), ("exports", "model.parquet")):
        ledger = Ledger(f"{folder}/scored", kind)
        ledger.claim([made])
        put(folder, f"scored/{made}")
        ledger.settle()
    put(folder, "out/model/model.json", data=b"{}")
    put(folder, "out/model/golden-0123456789abcdef.parquet")
    assert names(folder) == ["a.parquet", "golden-0123456789abcdef.parquet", "scored/mine.parquet"]
    assert "3 files" in caplog.text
    assert "written by dfm" in caplog.text
    assert names(folder, "scored") == ["scored/mine.parquet", "scored/model.parquet", "scored/part-00000.parquet"]


def delta(folder: str, table: str = "clicks") -> str:
    put(folder, f"{table}/part-0.parquet", f"{table}/day=1/part-1.parquet")
    put(folder, f"{table}/_delta_log/00000000000000000000.json", data=json.dumps({"add": {}}).encode())
    return "Delta Lake"


def iceberg(folder: str, table: str = "clicks") -> str:
    put(folder, f"{table}/data/day=1/part-0.parquet", f"{table}/data/part-1.parquet")
    put(folder, f"{table}/metadata/00000-6d.metadata.json", data=b"{}")
    return "Apache Iceberg"


def hudi(folder: str, table: str = "clicks") -> str:
    put(folder, f"{table}/part-0.parquet", f"{table}/day=1/part-1.parquet")
    put(folder, f"{table}/.hoodie/hoodie.properties", data=b"")
    return "Apache Hudi"


REMEDIES = {
    "Delta Lake": "Name it delta://.*clicks, with @v|Name it delta.(memory|file|local)",
    "Apache Iceberg": "Name it by its catalogue, iceberg://",
    "Apache Hudi": "Give data the list of its present files",
}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("predictions", r"the prediction into .* rows are missing there, or stand there twice; .*same dfm predict"),
        ("log", r"the synthetic log in .* give the same dfm synth \(--overwrite\) again"),
    ],
)
def test_what_dfm_has_not_written_to_its_end_is_no_data(tmp_path: Path, kind: str, told: str) -> None:
    folder = str(tmp_path)
    ledger = Ledger(folder, kind)
    ledger.claim(["part-0.parquet", "part-1.parquet"])
    put(folder, "part-0.parquet")
    for path in ("", "*.parquet"):
        with pytest.raises(DataError, match=told):
            names(folder, path)
    put(folder, "part-1.parquet")
    ledger.settle()
    assert names(folder) == ["part-0.parquet", "part-1.parquet"]


def test_what_lies_beside_a_half_written_log_or_prediction_is_data(tmp_path: Path) -> None:
    Ledger(str(tmp_path), "log").claim(["day=1/part-0.parquet", "truth.json"])
    Ledger(str(tmp_path / "scored"), "predictions").claim(["part-0.parquet", "_SUCCESS"])
    put(str(tmp_path), "mine/a.parquet", "scored/clicks-0.parquet", "scored/part-0.parquet", "day=1/part-0.parquet")
    assert names(str(tmp_path), "mine") == ["mine/a.parquet"]
    assert names(str(tmp_path), "scored/clicks-*.parquet") == ["scored/clicks-0.parquet"]
    for path in ("scored", "scored/*.parquet", "*/part-*.parquet", "**/part-0.parquet", ""):
        with pytest.raises(DataError, match="did not come to its end"):
            names(str(tmp_path), path)


def test_a_ledger_above_the_data_that_may_not_be_read_says_nothing(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "log/a.parquet")
    read = files.read_bytes

    def denied(url: str, options: files.Options = None) -> bytes:
        if "/log/" not in url:
            raise StorageError(f"{url}: access denied") from PermissionError("403")
        return read(url, options)

    monkeypatch.setattr(files, "read_bytes", denied)
    assert names(folder, "log") == ["log/a.parquet"]


def test_brackets_in_the_name_of_a_folder_are_no_way_around_a_half_written_log(tmp_path: Path) -> None:
    Ledger(str(tmp_path / "x[1]"), "log").claim(["day=1/part-0.parquet"])
    put(str(tmp_path / "x[1]"), "day=1/part-0.parquet")
    with pytest.raises(DataError, match="did not come to its end"):
        names(str(tmp_path), "x[1]/day=*")


@pytest.mark.parametrize("path", ["day=1", "day=*", "day=1/*.parquet"])
def test_a_day_of_a_synthetic_log_that_is_half_written_is_no_data(tmp_path: Path, path: str) -> None:
    Ledger(str(tmp_path), "log").claim(["day=1/part-0.parquet", "truth.json"])
    put(str(tmp_path), "day=1/part-0.parquet")
    with pytest.raises(DataError, match=r"the synthetic log in .* did not come to its end"):
        names(str(tmp_path), path)


@pytest.mark.parametrize("table", [delta, iceberg, hudi])
def test_a_table_is_refused_however_its_heap_of_files_is_named(folder: str, table: object) -> None:
    kind = table(folder)  # type: ignore[operator]
    first = next(name for name in ("part-0.parquet", "data/part-1.parquet") if files.exists(f"{folder}/clicks/{name}"))
    for path in ("", "clicks", "cl*", "clicks/*", "clicks/**/*.parquet", os.path.dirname(f"clicks/{first}")):
        with pytest.raises(DataError, match=f"belongs to a table of {kind}.*{REMEDIES[kind]}"):
            names(folder, path)
    below = "clicks/data/day=" if kind == "Apache Iceberg" else "clicks/day="
    for path in (f"{below}1", f"{below}*", f"{below}*/*.parquet", f"{below}[1]/*"):
        with pytest.raises(DataError, match=kind):
            names(folder, path)
    assert names(folder, f"clicks/{first}") == [f"clicks/{first}"], "a list of files says what it means"


def test_folders_that_only_sound_like_tables_are_none(folder: str) -> None:
    put(folder, "a.parquet", "metadata/b.parquet", "data/c.parquet")
    put(folder, "metadata/notes.json", "_delta_log/notes.txt", data=b"{}")
    assert names(folder) == ["a.parquet", "data/c.parquet", "metadata/b.parquet"]


# ------------------------------------------------------------------------------------- columns of the path ----


def columns(folder: str, path: str) -> list[tuple[dict[str, str], tuple[str, ...]]]:
    return [(dict(file.partition), file.given) for file in find_files(f"{folder}/{path}", {})]


def test_only_folders_below_the_path_give_columns(folder: str) -> None:
    put(folder, "version=3/clicks/day=1/a.parquet")
    for path in ("version=3/clicks", "version=3/clicks/*", "version=3/clicks/day=*/*.parquet"):
        assert columns(folder, path) == [({"day": "1"}, ())], path
    assert columns(folder, "version=*") == [({"version": "3", "day": "1"}, ())]


def test_what_the_path_itself_ends_in_is_there_for_who_names_it(folder: str) -> None:
    put(folder, "version=3/clicks/day=1/hour=2/a.parquet")
    for path in ("version=3/clicks/day=1", "version=3/clicks/day=1/*", "version=3/clicks/day=1/hour=*/*.parquet"):
        assert columns(folder, path) == [({"day": "1", "hour": "2"}, ("day",))], path
    for path in ("version=3/clicks/day=1/hour=2", "version=3/clicks/day=1/hour=2/a.parquet"):
        assert columns(folder, path) == [({"day": "1", "hour": "2"}, ("day", "hour"))], path


def test_a_path_that_gives_a_column_two_values_is_refused() -> None:
    assert partition_columns("a/day=1/day=1/x.parquet") == (("day", "1"),)
    with pytest.raises(DataError, match=r"gives the column 'day' twice, '1' and '2'"):
        partition_columns("a/day=1/b/day=2/x.parquet")


def test_values_of_a_path_are_read_as_hive_writes_them() -> None:
    assert partition_columns("t=a%3Ab%2Fc/é=☃/empty=/x.parquet") == (("t", "a:b/c"), ("é", "☃"), ("empty", ""))
    assert FoundFile("x", (), ()).given == ()
