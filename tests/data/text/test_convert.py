"""Conversions: the same bytes by any number of processes, nothing lost, nothing half, and jobs that train."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from dfm import jobs
from dfm.data.guess import guess
from dfm.data.parquet import find_shards
from dfm.data.text import convert as converting
from dfm.data.text.convert import convert
from dfm.data.text.jobs import job_text
from dfm.errors import DataError, SettingsError, StorageError
from dfm.model.export import hashed_inputs
from dfm.storage import files
from dfm.storage.ownership import CONVERSION, Ledger
from tests.support.small_jobs import in_process_client
from tests.support.small_models import make_model, random_table

ROWS = 4000


def click(at: int) -> int:
    """A label that two of the features decide."""
    return int((at % 7) * (at % 5) % 3 == 0)


LINES = {
    "libsvm": lambda i: f"{click(i)} {i % 7}:1 {10 + i % 5}:1 {20 + i % 3}:0.5",
    "libffm": lambda i: f"{click(i)} 0:{i % 7}:1 1:{10 + i % 5}:1 3:{20 + i % 3}:0.5",
    "vw": lambda i: f"{2 * click(i) - 1} {1 + i % 2} |a x{i % 7} |b y{i % 5} z:{i % 3 / 2}",
    "criteo": lambda i: "\t".join([f"{click(i)}", *[f"{i % 7}"] * 13, *[f"{i % 5:08x}"] * 25, ""]),
}


def write(folder: Path, kind: str, rows: int = ROWS) -> Path:
    path = folder / f"log.{kind}"
    path.write_text("".join(LINES[kind](i) + "\n" for i in range(rows)))
    return path


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("kind", LINES)
def test_a_converted_log_is_told_by_its_lines_and_its_job_trains(tmp_path: Path, kind: str) -> None:
    found = convert(str(write(tmp_path, kind)), str(tmp_path / "shards"))
    assert found.format == kind
    assert (found.account.read, found.account.written, found.account.rejected) == (ROWS, ROWS, 0)
    tables = tomllib.loads(job_text(found, str(tmp_path / "out")))
    tables["cluster"] = {"cache": str(tmp_path / "cache")}
    tables["training"] |= {"n_epochs": 3}
    with in_process_client(1) as client:
        result = jobs.train(tables, client)
    assert result.validation["auc"] > 0.9


def test_a_log_of_criteo_that_lost_columns_of_some_lines_is_known_and_the_lines_are_told(tmp_path: Path) -> None:
    """As an editor does that strips blanks, tabs too, from the ends of lines."""
    path = write(tmp_path, "criteo", 90)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rstrip()
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 4: 39 columns instead of 40"):
        convert(str(path), str(tmp_path / "shards"))
    found = convert(str(path), str(tmp_path / "shards"), on_bad_rows="skip", max_bad_fraction=0.1)
    assert (found.format, found.account.written, found.account.rejected) == ("criteo", 89, 1)


def test_one_process_and_two_write_the_same_bytes_and_teach_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "text" / "day=1").mkdir(parents=True)
    (tmp_path / "text" / "day=2").mkdir()
    write(tmp_path / "text" / "day=1", "vw")
    (tmp_path / "text" / "day=2" / "b.gz").write_bytes(gzip.compress(write(tmp_path, "vw", 500).read_bytes()))
    parameters = []
    for processes in (1, 2):
        folder = tmp_path / f"by-{processes}" / "shards"
        found = convert(str(tmp_path / "text"), str(folder), processes=processes, shard_bytes=20_000)
        assert found.n_shards > 3
        tables = tomllib.loads(job_text(found, str(folder.parent / "out")))
        tables["cluster"] = {"cache": str(folder.parent / "cache")}
        tables["training"] |= {"n_epochs": 1}
        with in_process_client(1) as client:
            parameters.append(jobs.train(tables, client).parameters_sha256)
    one, two = (digests(tmp_path / f"by-{processes}" / "shards") for processes in (1, 2))
    assert one == two
    assert {name.split("/")[0] for name in one} == {"day=1", "day=2", "_SUCCESS"}
    assert parameters[0] == parameters[1]


def test_a_days_folder_keeps_its_column_unless_the_output_has_it(tmp_path: Path) -> None:
    (tmp_path / "log" / "day=1").mkdir(parents=True)
    path = write(tmp_path / "log" / "day=1", "vw", 100)
    for folder in (str(path.parent), str(path), f"{path.parent.parent}/day=*"):
        convert(folder, str(tmp_path / "shards"), overwrite=True)
        assert sorted(digests(tmp_path / "shards")) == ["_SUCCESS", "day=1/part-00000-00000.parquet"]
    convert(str(path.parent), str(tmp_path / "by" / "day=1"))
    assert sorted(digests(tmp_path / "by")) == ["day=1/_SUCCESS", "day=1/part-00000-00000.parquet"]
    with pytest.raises(SettingsError, match=r"--to .* lies inside the input .*day=\*"):
        convert(f"{path.parent.parent}/day=*", str(path.parent / "shards"))


def test_values_of_folders_are_the_same_before_and_after(tmp_path: Path) -> None:
    values = ["a/b", "a=b", "50%", "a%2Fb", "ä b", "c"]
    for value in values:
        (tmp_path / "log" / f"the%2Fsite={quote(value, safe='')}").mkdir(parents=True)
        write(tmp_path / "log" / f"the%2Fsite={quote(value, safe='')}", "vw", 10)
    convert(str(tmp_path / "log"), str(tmp_path / "shards"))
    found = [shard.partition for shard in find_shards([str(tmp_path / "shards")])]
    assert sorted(found) == sorted((("the/site", value),) for value in values)


def test_a_job_asks_the_store_as_its_conversion_did(tmp_path: Path) -> None:
    found = convert(str(write(tmp_path, "libsvm", 50)), str(tmp_path / "shards"))
    options = {"endpoint_url": "http://localhost:1"}
    assert tomllib.loads(job_text(found, "out", options))["data"]["storage_options"] == options
    assert "storage_options" not in job_text(found, "out", {})


def test_rows_that_a_model_exports_come_back_as_they_are(tmp_path: Path) -> None:
    model, rows = make_model(), random_table(50)
    ids, fields, values = hashed_inputs(model, rows)
    lines = [
        "1 " + " ".join(f"{field}:{index}:{value}" for field, index, value in zip(*entry, strict=True) if index >= 0)
        for entry in zip(fields, ids, values, strict=True)
    ]
    (tmp_path / "rows.ffm").write_text("\n".join(lines))
    convert(str(tmp_path / "rows.ffm"), str(tmp_path / "shards"), format="libffm")
    table = pq.read_table(tmp_path / "shards")
    for at, row in enumerate(table.drop(["label"]).to_pylist()):
        back = {(int(name.removeprefix("field_")), *pair) for name, pairs in row.items() for pair in pairs}
        assert back == {one for one in zip(fields[at], ids[at], values[at], strict=True) if one[1] >= 0}


def with_bad_lines(folder: Path) -> Path:
    path = write(folder, "libsvm")
    lines = path.read_text().splitlines()
    lines[1499], lines[3000] = "one 1:2", "1 1:nan"
    path.write_text("\n".join(["# a comment", "", *lines]))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_line_stops_with_its_place_and_leaves_nothing(tmp_path: Path, processes: int) -> None:
    path = with_bad_lines(tmp_path)
    with pytest.raises(DataError, match=r"log\.libsvm, line 1502: the label is no number \('one'\)\. Repair"):
        convert(str(path), str(tmp_path / "shards"), processes=processes, shard_bytes=10_000)
    assert not list((tmp_path / "shards").glob("*.parquet"))


def test_bad_lines_that_are_skipped_are_counted_with_their_places(tmp_path: Path) -> None:
    path = with_bad_lines(tmp_path)
    found = convert(str(path), str(tmp_path / "shards"), on_bad_rows="skip", shard_bytes=10_000)
    assert found.account.to_dict() == {
        "lines": ROWS + 2,
        "rows": ROWS - 2,
        "rejected": 2,
        "blank": 2,
        "reasons": {"the label is no number": 1, "the value is no finite number": 1},
    }
    assert [bad.line for bad in found.account.examples] == [1502, 3003]
    assert pq.read_table(tmp_path / "shards").num_rows == ROWS - 2
    with pytest.raises(DataError, match=r"2 of 4002 lines are bad, more than --max-bad-fraction 0\.0001 allows"):
        convert(str(path), str(tmp_path / "shards"), on_bad_rows="skip", max_bad_fraction=0.0001, overwrite=True)
    assert not list((tmp_path / "shards").glob("*.parquet"))


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"max_bad_fraction": float("nan")}, "max_bad_fraction = NaN is not legal: expected a number from 0 to 1"),
        ({"max_bad_fraction": -1}, "max_bad_fraction = -1 is not legal"),
        ({"max_bad_fraction": None}, "max_bad_fraction = None is not legal"),
        ({"processes": 0}, "processes = 0 is not legal: expected an integer, 1 or more"),
        ({"shard_bytes": 1.5}, "shard_bytes = 1.5 is not legal"),
        ({"types": {"a": "tex"}}, r'types = {"a": "tex"} is not legal: .*Did you mean "text"\?'),
        ({"types": "a=text"}, 'types = "a=text" is not legal: expected a dict'),
        ({"names": "abc"}, "names = 'abc' is a lone text; give a list with a name for each column"),
    ],
)
def test_wishes_that_nothing_can_fulfil_are_refused(tmp_path: Path, wish: dict[str, Any], told: str) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SettingsError, match=told):
        convert(str(tmp_path / "log.csv"), str(tmp_path / "shards"), on_bad_rows="skip", **wish)
    assert not (tmp_path / "shards").exists()


def test_a_lone_text_that_means_missing_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("label,s\n1,NA\n0,N\n1,A\n")
    convert(str(tmp_path / "log.csv"), str(tmp_path / "shards"), missing="NA")
    assert pq.read_table(tmp_path / "shards")["s"].to_pylist() == [None, "N", "A"]
    assert guess(str(tmp_path / "shards"), missing="NA") == guess(str(tmp_path / "shards"), missing=["NA"])


def test_ends_of_lines_of_other_systems_change_no_row(tmp_path: Path) -> None:
    for name, end in (("unix", "\n"), ("windows", "\r\n")):
        (tmp_path / f"{name}.csv").write_bytes(f"label,s{end}1,a{end}0,b".encode())
        (tmp_path / f"{name}.svm").write_bytes(f"1 1:2{end}0 3:4".encode())
        for kind in ("csv", "svm"):
            convert(str(tmp_path / f"{name}.{kind}"), str(tmp_path / kind / name))
    for kind in ("csv", "svm"):
        assert digests(tmp_path / kind / "unix") == digests(tmp_path / kind / "windows")


def test_what_has_no_row_is_refused(tmp_path: Path) -> None:
    for text, message in (
        ("", "is empty"),
        ("# nothing\n\n", "no row in its first lines"),
        ("a,b\n", "no row in 0 lines"),
    ):
        (tmp_path / "log.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            convert(str(tmp_path / "log.txt"), str(tmp_path / "shards"))
        assert not list((tmp_path / "shards").glob("[!.]*"))


def test_an_output_that_holds_other_things_or_an_input_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "libsvm", 100)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"notes\.txt was not made by dfm convert"):
            convert(str(path), str(tmp_path / "mine"), overwrite=overwrite)
        with pytest.raises(SettingsError, match=r"--to .* contains the input"):
            convert(str(path), str(tmp_path), overwrite=overwrite)
    convert(str(path), str(tmp_path / "shards"), shard_bytes=500)
    n_before = len(list((tmp_path / "shards").glob("*.parquet")))
    with pytest.raises(SettingsError, match="holds an earlier conversion"):
        convert(str(path), str(tmp_path / "shards"))
    convert(str(path), str(tmp_path / "shards"), overwrite=True)
    assert n_before > len(list((tmp_path / "shards").glob("*.parquet"))) == 1


@pytest.mark.parametrize("line", ['{"label": 1, "site": "a"}', '[{"label": 1},', "[", '["label", "site"]'])
@pytest.mark.parametrize("format", ["auto", "csv", "tsv"])
def test_json_is_no_table(tmp_path: Path, line: str, format: str) -> None:
    (tmp_path / "log.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(DataError, match=r"is JSON, .*read_json\('log.jsonl'\), 'log.parquet'\) makes Parquet of it"):
        convert(str(tmp_path / "log.jsonl"), str(tmp_path / "out"), format=format)
    assert not (tmp_path / "out").exists()


def test_a_value_that_begins_as_json_is_one(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("{label},x\n1,[a]\n0,{b}\n")
    assert convert(str(tmp_path / "log.csv"), str(tmp_path / "out")).account.written == 2


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, bytes])
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("format", ["auto", "csv"])
def test_files_that_hold_nothing_are_passed_over(
    tmp_path: Path, compress: Callable[[bytes], bytes], names: tuple[str, str], format: str
) -> None:
    empty, full = names
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / empty).write_bytes(compress(b""))
    (tmp_path / "log" / full).write_bytes(compress(b"label,x\n1,a\n0,b\n"))
    assert convert(str(tmp_path / "log"), str(tmp_path / "out"), format=format).account.written == 2
    with pytest.raises(DataError, match="is empty: no row to convert"):
        convert(str(tmp_path / "log" / empty), str(tmp_path / "other"))


def test_a_header_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("prénom,label\nx,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a header that is no UTF-8, .*iconv -f CP1252 -t UTF-8 log.csv > utf8.csv"):
        convert(str(tmp_path / "log.csv"), str(tmp_path / "out"))


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "log.csv").write_text("label,x\n1,a\n")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(SettingsError, match=f"{tmp_path}/taken is a file, and a folder is needed there: name another"):
        convert(str(tmp_path / "log.csv"), str(tmp_path / "taken" / below))
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_killed_conversion_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    path, shards = write(tmp_path, "libsvm", 200_000), tmp_path / "shards"
    program = (
        "import sys; from dfm.data.text.convert import convert\n"
        "if __name__ == '__main__': convert(sys.argv[1], sys.argv[2], processes=2, shard_bytes=20_000)"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), str(path), str(shards)]
    environment = {**os.environ, "PYTHONPATH": str(Path(converting.__file__).parents[3])}
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    while len(list(shards.glob("*.parquet"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (shards / "_SUCCESS").exists()
    for name in (str(shards), f"{shards}/*.parquet"):
        with pytest.raises(DataError, match=r"did not come to its end.*give the same dfm convert again"):
            find_shards([name])
    convert(str(path), str(shards), shard_bytes=20_000)
    assert sum(shard.n_rows for shard in find_shards([str(shards)])) == 200_000
    convert(str(path), str(tmp_path / "again"), shard_bytes=20_000)
    assert digests(shards) == digests(tmp_path / "again")


@contextlib.contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`dfm` with two workers in a process of its own, whose output is read to the end of all of them."""
    environment = {**os.environ, "PYTHONPATH": str(Path(converting.__file__).parents[3])}
    line = [sys.executable, "-m", "dfm", *map(str, arguments), "--workers", "2"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_unfinished(shards: Path, process: subprocess.Popen[str]) -> None:
    """Until two workers write shards."""
    while len(list(shards.rglob(".*.part"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)


def large_days(folder: Path) -> Path:
    """Four days of a log whose conversion takes a while."""
    text = "label,site\n" + "".join(f"{i % 2},site{i}\n" for i in range(50_000)) * 10
    for day in range(4):
        (folder / f"day={day}").mkdir(parents=True)
        (folder / f"day={day}" / "log.csv").write_text(text)
    return folder


def test_a_killed_conversion_writes_nothing_into_a_later_one(tmp_path: Path) -> None:
    """The process that was given the command alone is killed, as supervisors do, and not its workers."""
    large, shards = large_days(tmp_path / "large"), tmp_path / "shards"
    for day in range(4):
        (tmp_path / "small" / f"day={day}").mkdir(parents=True)
        (tmp_path / "small" / f"day={day}" / "log.csv").write_text("label,site\n1,a\n0,b\n")
    with command("convert", large, "--to", shards) as process:
        wait_for_unfinished(shards, process)
        process.kill()
        process.communicate(timeout=30)  # until the last of them has closed it
    assert convert(str(tmp_path / "small"), str(shards)).account.written == 8
    assert sum(shard.n_rows for shard in find_shards([str(shards)])) == 8


@pytest.mark.parametrize("name", ["convert", "synth"])
def test_a_conversion_that_is_told_to_stop_does_as_after_ctrl_c(tmp_path: Path, name: str) -> None:
    shards = tmp_path / "shards"
    if name == "convert":
        arguments = ("convert", large_days(tmp_path / "large"), "--to", shards)
    else:
        arguments = ("synth", shards, "--rows", 2_000_000)
    with command(*arguments) as process:
        wait_for_unfinished(shards, process)
        process.terminate()
        _, told = process.communicate(timeout=30)
        assert (process.returncode, told.splitlines()[-1]) == (130, "error: interrupted")
    assert list(shards.rglob(".*.part")) == []
    assert not (shards / "_SUCCESS").exists()


def test_a_conversion_that_was_overtaken_replaces_no_shard_of_the_later_one(tmp_path: Path) -> None:
    """Both write shards of the same names; the second begins and ends while the first is at work."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = write(tmp_path / "one", "libsvm"), write(tmp_path / "two", "libsvm", 300)
    out = tmp_path / "out"
    of_second: dict[str, str] = {}

    def overtaken(_done: int, _total: int) -> None:
        convert(str(second), str(out), shard_bytes=second.stat().st_size // 6 + 1)
        of_second.update(digests(out))

    with pytest.raises(StorageError, match="another run claimed the same files"):
        convert(str(first), str(out), shard_bytes=first.stat().st_size // 6 + 1, progress=overtaken)
    assert len(of_second) == 7
    assert digests(out) == of_second


def test_a_bad_line_of_a_conversion_that_was_overtaken_deletes_no_shard_of_the_later_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = write(tmp_path / "one", "libsvm"), write(tmp_path / "two", "libsvm", 300)
    with first.open("a") as stream:
        stream.write("no row\n")
    out = tmp_path / "out"

    def overtaken(_done: int, _total: int) -> None:
        convert(str(second), str(out))

    with pytest.raises(DataError, match=first.name):
        convert(str(first), str(out), progress=overtaken)
    assert sum(shard.n_rows for shard in find_shards([str(out)])) == 300


def test_a_shard_that_came_while_the_next_conversion_made_room_is_none_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out, claim = write(tmp_path, "libsvm", 300), tmp_path / "out", Ledger.claim
    Ledger(str(out), CONVERSION).claim(["part-00009-00009.parquet"])

    def late(*arguments: Any) -> str:
        (out / "part-00009-00009.parquet").write_bytes(b"late")
        return claim(*arguments)

    monkeypatch.setattr(Ledger, "claim", late)
    convert(str(log), str(out))
    assert not (out / "part-00009-00009.parquet").exists()


@pytest.fixture(params=["folder", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on a disk and one in an object store."""
    if request.param == "folder":
        yield str(tmp_path / "shards")
        return
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def days(folder: Path, **texts: str) -> str:
    """A log of these days only, by the lines of each."""
    shutil.rmtree(folder, ignore_errors=True)
    for day, text in texts.items():
        (folder / f"day={day}").mkdir(parents=True)
        (folder / f"day={day}" / "log.csv").write_text("label,x\n" + text)
    return str(folder)


def days_there(output: str) -> list[str]:
    return [name for name in files.folders_in(output) if files.names_in(f"{output}/{name}")]


def test_days_with_a_bad_line_are_converted_once_it_is_repaired(tmp_path: Path, output: str) -> None:
    log = tmp_path / "log"
    with pytest.raises(DataError, match="line 3"):
        convert(days(log, a="1,a\n", b="1,a\n0,b,c\n"), output)
    for overwrite in (False, True):
        convert(days(log, a="1,a\n", b="1,a\n0,b\n"), output, overwrite=overwrite)
        assert days_there(output) == ["day=a", "day=b"]
    assert files.is_local(output) is Path(output, "_SUCCESS").exists()


def test_days_roll_on_night_by_night(tmp_path: Path, output: str) -> None:
    for first, second in ("ab", "bc", "cd", "ab"):
        convert(days(tmp_path / "log", **{first: "1,a\n", second: "0,b\n"}), output, overwrite=True)
        assert days_there(output) == [f"day={first}", f"day={second}"]
        if files.is_local(output):
            assert files.folders_in(output) == days_there(output), "no empty folder stays"


def test_a_day_that_a_killed_conversion_has_begun_is_replaced_and_what_others_have_there_is_not(
    tmp_path: Path, output: str
) -> None:
    log = days(tmp_path / "log", a="1,a\n", b="0,b\n")
    names = ["day=a/part-00000-00000.parquet", "day=b/part-00001-00000.parquet"]
    Ledger(output, CONVERSION).claim([*names, "_SUCCESS"])
    unfinished = f"{output}/day=b/.part-00001-00000.parquet.{uuid.uuid4().hex}.part"
    files.write_bytes(unfinished, b"half")
    files.write_bytes(f"{output}/day=a/notes.txt", b"mine")
    with pytest.raises(SettingsError, match=r"day=a was not made by dfm convert"):
        convert(log, output, overwrite=True)
    files.remove(f"{output}/day=a/notes.txt")
    convert(log, output)
    assert days_there(output) == ["day=a", "day=b"]
    if files.is_local(output):
        assert Path(unfinished).read_bytes() == b"half", "somebody may write it yet"
        os.utime(unfinished, (1, 1))
        convert(log, output, overwrite=True)
        assert not Path(unfinished).exists()


def test_stores_are_read_and_written_as_folders_are(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    path = write(tmp_path, "libffm", 300)
    store.pipe_file("/text/log.ffm", path.read_bytes())
    try:
        convert("memory://text/*.ffm", "memory://shards", shard_bytes=2000)
        convert(str(path), str(tmp_path / "shards"), shard_bytes=2000)
        for name in digests(tmp_path / "shards"):
            assert store.cat_file(f"/shards/{name}") == (tmp_path / "shards" / name).read_bytes()
    finally:
        store.rm("/text", recursive=True)
        store.rm("/shards", recursive=True)


def test_a_format_is_known_by_the_first_lines() -> None:
    from dfm.data.text.formats import FORMATS, format_of

    for kind, line in LINES.items():
        assert format_of("auto", None, [line(i) for i in range(20)]).name == kind  # type: ignore[arg-type]
    assert format_of("auto", None, ["a,b", "1,2"]).name == "csv"  # type: ignore[arg-type]
    assert format_of("auto", None, ["a\tb", "1\t2"]).name == "tsv"  # type: ignore[arg-type]
    assert format_of("auto", None, ["2 qid:1 1:0.5", "0 qid:1"]).name == "libsvm"  # type: ignore[arg-type]
    assert {*FORMATS} == {*LINES, "csv", "tsv"}


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Blocks and shards are let go of: four times the lines take no more."""
    program = "import sys, resource; from dfm.data.text.convert import convert; convert(sys.argv[1], sys.argv[2])\n"
    program += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    sizes = []
    for n in (400_000, 1_600_000):
        text = "".join(LINES["libsvm"](i) + "\n" for i in range(1000)).encode()
        (tmp_path / f"{n}.svm").write_bytes(text * (n // 1000))
        command = [sys.executable, "-c", program, str(tmp_path / f"{n}.svm"), str(tmp_path / f"{n}")]
        sizes.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert sizes[1] < sizes[0] + 40, sizes


def test_labels_decide_the_task_that_a_job_has(tmp_path: Path) -> None:
    for labels, expected in (("10", {}), ("21", {"label_positive": ["2"]}), ("135", {"task": "regression"})):
        path = tmp_path / "log.svm"
        path.write_text("".join(f"{labels[i % len(labels)]} 1:{i}\n" for i in range(9)))
        job = tomllib.loads(job_text(convert(str(path), str(tmp_path / "shards"), overwrite=True), "out"))
        told = {**job["schema"], **job.get("model", {})}
        assert {key: told[key] for key in ("label_positive", "task") if key in told} == expected


def test_numbers_of_a_labels_column_are_float64(tmp_path: Path) -> None:
    (tmp_path / "log.svm").write_text("16777217 1:0.1\n0.1 1:16777217\n")
    convert(str(tmp_path / "log.svm"), str(tmp_path / "shards"))
    table = pq.read_table(tmp_path / "shards")
    assert table["label"].to_pylist() == [16777217.0, 0.1]
    assert [entry[0][1] for entry in table["features"].to_pylist()] == [float(np.float32(0.1)), 16777216.0]


def test_of_two_conversions_into_one_folder_none_ends_as_if_it_were_alone(tmp_path: Path) -> None:
    """The second deletes what the first has written, and is killed; the first goes on, and lacks its first shards."""
    (tmp_path / "in").mkdir()
    log = write(tmp_path / "in", "libsvm")
    size, calls, out = log.stat().st_size // 6 + 1, 0, str(tmp_path / "out")

    class Killed(BaseException):
        pass

    def killed(_done: int, _total: int) -> None:
        raise Killed

    def overtaken(_done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            with pytest.raises(Killed):
                convert(str(log), out, shard_bytes=size, progress=killed)

    with pytest.raises(StorageError, match=r"another run wrote to .* while this one did"):
        convert(str(log), out, shard_bytes=size, progress=overtaken)
    with pytest.raises(DataError, match="did not come to its end"):
        find_shards([out])
    assert convert(str(log), out, shard_bytes=size).account.written == ROWS
    assert sum(shard.n_rows for shard in find_shards([out])) == ROWS
