"""dfm deletes and replaces what it made and nothing else, and writes nothing into what it reads."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client

import dfm
from dfm import jobs
from dfm.cli import demo
from dfm.data import synthetic
from dfm.errors import DataError, SettingsError, StorageError
from dfm.launch import process
from dfm.model.export import FORMATS, export
from dfm.pages.page import write_report
from dfm.runs import record as runs
from dfm.storage import files
from dfm.storage.arrays import array_bytes
from dfm.storage.ownership import Ledger, check_apart, is_array_file, is_record, place_of
from dfm.workflow import steps
from tests.support.small_jobs import LAST_DAY, in_process_client, job_tables
from tests.support.small_models import make_model

PACKAGE = Path(dfm.__file__).parent
RECORD = PACKAGE.parent / "benchmarks/decisions/2026-11-26-what-dfm-deletes.md"
MINE = b"mine, and nobody else's"


@pytest.fixture(params=["folder", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk and one in an object store."""
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


# --------------------------------------------------------------------------------------- the complete list ----

DELETING = {
    *("unlink", "rmtree", "rmdir", "rm", "rm_file", "remove", "rename", "removedirs", "renames", "move", "mv"),
    *("delete", "remove_own", "truncate", "replace", "pipe_file", "put_file", "write_bytes", "write_text", "writing"),
}
"""Names of functions that take a file away or put another one in its place."""
NOT_OF_FILES = re.compile(r"dataclasses\.replace|arrays\.replace|^replace$|^gauge\.remove$")


def calls_that_delete() -> set[str]:
    """`function: call` of every place in the package that deletes or replaces a file."""
    found: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        _search(ast.parse(path.read_text()), path.stem, found)
    return found


def _search(node: ast.AST, place: str, found: set[str]) -> None:
    """Add the calls below a node, whose innermost function or class is `place`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call | ast.Attribute):
            called = child.func if isinstance(child, ast.Call) else child
            last = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if last in DELETING and _is_of_files(child, ast.unparse(called)):
                found.add(f"{place}: {ast.unparse(called)}")
        is_named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        _search(child, child.name if is_named else place, found)


def _is_of_files(node: ast.AST, name: str) -> bool:
    """Text and times have `replace` too, but not of one argument; an attribute alone is handed on (shutil.rmtree)."""
    if NOT_OF_FILES.search(name) or "(" in name:
        return name.endswith((".unlink", ".rmdir", ".rename", ".write_bytes", ".write_text"))
    if isinstance(node, ast.Call):
        is_of_paths = len(node.args) == 1 and not node.keywords
        return is_of_paths or not name.endswith(".replace") or name.startswith("os.")
    return name.startswith("shutil.")


def test_every_place_that_deletes_or_replaces_files_is_listed_with_its_guard() -> None:
    listed = set(re.findall(r"^\| `(\w+: [^`]+)` \|", RECORD.read_text(), re.MULTILINE))
    assert calls_that_delete() == listed


# -------------------------------------------------------------------------------------------------- ledger ----


def test_a_ledger_knows_its_files_and_removes_nothing_else(folder: str) -> None:
    ledger = Ledger(folder, "kind")
    assert (ledger.own(), ledger.foreign()) == ([], [])
    names = ["a.parquet", "day=1/b.parquet"]
    ledger.claim(names)
    for name in (*names, "c.parquet", "day=1/c.parquet", "other/a.parquet"):
        files.write_bytes(files.join(folder, name), MINE)
    assert ledger.own() == names, "of a killed run"
    ledger.settle()
    assert ledger.foreign() == ["c.parquet", "other"]
    files.write_bytes(files.join(folder, "a.parquet"), MINE + b"!")
    assert ledger.own() == ["day=1/b.parquet"], "somebody put another file in its place"
    with pytest.raises(SettingsError, match=r"a\.parquet is there and was not made by dfm"):
        ledger.claim(["a.parquet"])
    ledger.remove()
    ledger.remove(["c.parquet"])
    assert not files.exists(files.join(folder, "day=1/b.parquet"))
    for name in ("a.parquet", "c.parquet", "day=1/c.parquet", "other/a.parquet"):
        assert files.exists(files.join(folder, name)), name


def test_a_folder_of_hidden_files_is_nobodys_and_one_that_may_hold_others_is_foreign(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "kind")
    ledger.claim(["day=1/a.parquet", "day=2/a.parquet"])
    for name in ("day=1/.a.parquet.part", "day=2/b.parquet", "day=3/deep/c.parquet", ".git/config"):
        files.write_bytes(f"{tmp_path}/{name}", MINE)
    (tmp_path / "day=4" / "deep").mkdir(parents=True)
    (tmp_path / "day=5").symlink_to(tmp_path / "day=4")
    assert ledger.foreign() == ["day=2", "day=3", "day=5"]


def test_folders_that_a_ledger_emptied_go_and_those_of_others_stay(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "kind")
    names = ["day=1/hour=1/a.parquet", "day=2/a.parquet"]
    ledger.claim(names)
    for name in (*names, "day=2/.hidden"):
        files.write_bytes(f"{tmp_path}/{name}", MINE)
    (tmp_path / "day=3").mkdir()
    ledger.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".dfm-kind.json", "day=2", "day=3"]
    assert [path.name for path in (tmp_path / "day=2").iterdir()] == [".hidden"]


@pytest.mark.parametrize("is_overtaken", [False, True])
def test_an_interrupted_run_deletes_what_it_left_half_written_and_nothing_else(
    tmp_path: Path, is_overtaken: bool
) -> None:
    ledger = Ledger(str(tmp_path), "kind")
    half, others = f"day=1/.a.parquet.{DIGITS}.part", [f"day=1/.b.parquet.{DIGITS}.part", "day=1/.a.parquet.part"]

    def interrupted() -> None:
        with ledger.tidied():
            ledger.claim(["day=1/a.parquet"])
            for name in (half, *others):
                files.write_bytes(f"{tmp_path}/{name}", MINE)
            if is_overtaken:
                Ledger(str(tmp_path), "kind").claim(["day=1/a.parquet"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / half).exists() is is_overtaken
    assert_still_there([f"{tmp_path}/{name}" for name in others])


def test_a_ledger_that_speaks_of_files_elsewhere_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(MINE)
    (tmp_path / "in").mkdir()
    outside = ["../precious", str(tmp_path / "precious"), "a/../../precious", "./../precious", "a\\b"]
    content = {"made_by": "dfm", "files": dict.fromkeys(outside)}
    (tmp_path / "in" / ".dfm-kind.json").write_text(json.dumps(content))
    Ledger(str(tmp_path / "in"), "kind").remove()
    assert (tmp_path / "precious").read_bytes() == MINE


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"made_by": "me", "files": {}}', b'{"made_by": "dfm"}'])
def test_a_file_that_is_no_ledger_is_not_replaced(folder: str, content: bytes) -> None:
    ledger = Ledger(folder, "kind")
    files.write_bytes(ledger.url, content)
    with pytest.raises(SettingsError, match="not made by dfm"):
        ledger.claim(["a"])
    assert files.read_bytes(ledger.url) == content


def test_arrays_and_records_are_known_by_what_they_hold(folder: str) -> None:
    arrays = {"rows": np.zeros(3, np.float32)}
    contents = {
        "ours": array_bytes(arrays),
        "cut short": array_bytes(arrays)[:90],
        "text": MINE,
        "empty": b"",
        "theirs": (96).to_bytes(8, "little")
        + b'{"rows":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
        + b" " * 50,
    }
    for name, data in contents.items():
        files.write_bytes(files.join(folder, name), data)
    assert {name for name in contents if is_array_file(files.join(folder, name))} == {"ours", "cut short"}
    assert not is_array_file(files.join(folder, "missing"))
    files.write_bytes(files.join(folder, "one"), b'{"a": 1,\n "b": 2}')
    files.write_bytes(files.join(folder, "lines"), b'{"a": 1, "b": 2}\n{"a": 3}')
    for name in ("one", "lines"):
        assert is_record(files.join(folder, name), ("a", "b"))
        assert not is_record(files.join(folder, name), ("a", "c"))
    assert not any(is_record(files.join(folder, name), ()) for name in ("text", "empty", "missing"))


# --------------------------------------------------------------------------------------- apart from inputs ----


def check(output: str, data: str, **more: object) -> None:
    check_apart(output, [data], "output", **more)


@pytest.mark.parametrize(
    ("output", "data", "relation"),
    [
        ("log", "log", "is"),
        ("log/", "log", "is"),
        ("log/../log/.", "log", "is"),
        ("log/out", "log", "lies inside"),
        ("log/day=1", "log/day=*", "is"),
        ("log/day=1/out", "log/day=*", "lies inside"),
        (".", "log", "contains"),
        ("log", "log/day=1/a.parquet", "contains"),
        ("log/day=1", "log/day=*/*.parquet", "contains"),
    ],
)
def test_an_output_that_is_contains_or_lies_inside_an_input_is_refused(
    folder: str, output: str, data: str, relation: str
) -> None:
    files.write_bytes(f"{folder}/log/day=1/a.parquet", MINE)
    with pytest.raises(SettingsError, match=rf"output \S+ {relation} the input \S+; .*choose a folder that lies apart"):
        check(f"{folder}/{output}", f"{folder}/{data}")


@pytest.mark.parametrize("output", ["out", "log2", "logs/log", "lo", "log/day=2"])
def test_a_folder_beside_the_input_is_apart(folder: str, output: str) -> None:
    files.write_bytes(f"{folder}/log/day=1/a.parquet", MINE)
    check(f"{folder}/{output}", f"{folder}/log/day=1" if output.startswith("log/") else f"{folder}/log")


def test_all_names_of_a_local_folder_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "log")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    log = f"{tmp_path}/log"
    for name in (
        "log",
        "./log",
        "link",
        "link/",
        f"file://{log}",
        f"local://{log}",
        "~/log",
        f"simplecache::file://{log}",
    ):
        assert place_of(name) == ("file", os.path.realpath(log)), name
        for output, data in ((name, log), (log, name), (f"{name}/out", log), (f"{log}/out", name)):
            with pytest.raises(SettingsError, match="the input"):
                check(output, data)


def test_protocols_with_two_names_are_one_store() -> None:
    pytest.importorskip("s3fs", reason="object storage is tested with s3fs (extra dev)")
    assert place_of("s3a://bucket/log/") == place_of("s3://bucket/log") == ("s3", "/bucket/log")
    assert place_of("s3://bucket/log") != place_of("memory://bucket/log")


def test_shards_beyond_a_symbolic_link_are_input_too(tmp_path: Path) -> None:
    (tmp_path / "scored").mkdir()
    (tmp_path / "log").mkdir()
    (tmp_path / "scored" / "a.parquet").write_bytes(MINE)
    (tmp_path / "log" / "day=1").symlink_to(tmp_path / "scored")
    check(f"{tmp_path}/scored", f"{tmp_path}/log")
    with pytest.raises(SettingsError, match="contains the input"):
        check(f"{tmp_path}/scored", f"{tmp_path}/log", shards=[f"{tmp_path}/log/day=1/a.parquet"])


def test_a_cache_may_hide_where_no_reader_looks(folder: str) -> None:
    files.write_bytes(f"{folder}/log/a.parquet", MINE)
    check(f"{folder}/log/.dfm-cache", f"{folder}/log", may_hide=True)
    for output, may_hide in ((".dfm-cache", False), ("cache", True), ("_day=1", True), (".", True)):
        with pytest.raises(SettingsError, match="the input"):
            check(f"{folder}/log/{output}", f"{folder}/log", may_hide=may_hide)


# ------------------------------------------------------------------------------ files planted everywhere ----

DIGITS = "0" * 32
LOOK_ALIKES = {
    "cache": [
        *("thesis.docx", "experiment.safetensors", "clicks.parquet", f"chunk-{DIGITS}.safetensors"),
        *(f"partition-{DIGITS}.safetensors", f".chunk-{DIGITS}.safetensors.{DIGITS}.part"),
    ],
    "out": ["notes.txt", "part-00000.parquet", "_SUCCESS", ".run.json.part", "round-00000001.json"],
    "out/model": ["notes.txt", "part-00000.parquet", f"parameters-{DIGITS[:16]}.safetensors", "model.onnx"],
    "out/checkpoint": [
        *("notes.txt", "epoch-1.pt", f"round-00000001-block-0-{DIGITS[:16]}.safetensors", ".round-00000001.json.part"),
        *(f".round-00000001.json.{DIGITS}.part", f".round-00000001-block-0-{DIGITS[:16]}.safetensors.{DIGITS}.part"),
    ],
    "out/model-evaluations": ["notes.json"],
    "scored": ["notes.txt", "part-00000.parquet", "part-00000-6d.snappy.parquet", "day=1/part-00000.parquet"],
}
"""By folder: names that a look at names alone would take for dfm's."""
RESERVED = ("run.json", "events.jsonl", "cancel.json", "model/model.json", "checkpoint/round-00000007.json")
"""Names in an output that dfm needs: a foreign file there is refused before any work."""


def plant(root: str, folder: str) -> list[str]:
    urls = [files.join(root, f"{folder}/{name}") for name in LOOK_ALIKES[folder]]
    for url in urls:
        files.write_bytes(url, MINE)
        if files.is_local(url):
            os.utime(url, (1, 1))
    return urls


def assert_still_there(urls: list[str]) -> None:
    assert [url for url in urls if not files.exists(url) or files.read_bytes(url) != MINE] == []


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(1) as client:
        yield client


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of clicks on four days."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=2_000, days=4, shards_per_day=1, seed=3)
    return directory


def job_at(folder: str, log: Path, tmp_path: Path, **output: object) -> dict[str, dict[str, object]]:
    tables = job_tables(log, tmp_path, cluster={"cache_limit": "1B"}, output={"directory": f"{folder}/out", **output})
    tables["training"] |= {"n_epochs": 1, "n_replicas": 2, "averages_per_epoch": 1}
    return tables


def test_files_of_others_wherever_a_user_can_point_dfm_at_are_found_afterwards(
    folder: str, log: Path, client: Client, tmp_path: Path
) -> None:
    planted = plant(str(tmp_path), "cache")
    for place in ("out", "out/model", "out/checkpoint", "out/model-evaluations", "scored"):
        planted += plant(folder, place)
    model, day, scored = f"{folder}/out/model", [f"{log}/day={LAST_DAY}"], f"{folder}/scored"
    for _ in range(3):  # a model before, and one before that
        jobs.train(job_at(folder, log, tmp_path, resume=False), client)
    where = steps.Where(client)
    steps.evaluate_once(model, day, where)
    with pytest.raises(SettingsError, match="holds day=1, which no earlier prediction"):
        steps.predict_once(model, day, scored, where)
    for _ in range(2):
        jobs.predict(model, day, scored, overwrite=True, client=client)
        steps.predict_once(model, day, scored, where, beside=True, keep=["day"])
    runs.request_cancel(f"{folder}/out")
    assert_still_there(planted)
    own = [name for name in files.names_in(scored) if name not in LOOK_ALIKES["scored"]]
    assert len([name for name in own if name.endswith(".parquet")]) == 1, "earlier predictions are replaced"


@pytest.mark.parametrize("name", RESERVED)
def test_a_file_of_others_with_a_name_that_a_run_needs_is_refused_before_any_work(
    folder: str, name: str, log: Path, client: Client, tmp_path: Path
) -> None:
    url = f"{folder}/out/{name}"
    for content in (MINE, b'{"learner": {}, "version": [2, 0, 0]}', b'{"format": 1}'):
        files.write_bytes(url, content)
        with pytest.raises(SettingsError, match=rf"{name} (is there and was not made by dfm|is no record of a run)"):
            jobs.train(job_at(folder, log, tmp_path, resume="round" not in name or folder.startswith("/")), client)
        assert files.read_bytes(url) == content


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_replaces_an_earlier_one_and_nothing_of_others(folder: str, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx", reason="the ONNX export needs onnx (extra onnx)")
    model = make_model()
    urls = export(model, kind, folder)
    assert export(model, kind, folder) == urls
    for url in urls:
        ours = files.read_bytes(url)
        files.write_bytes(url, MINE)
        with pytest.raises(SettingsError, match="was not made by dfm"):
            export(model, kind, folder)
        assert files.read_bytes(url) == MINE
        files.write_bytes(url, ours)


def test_a_synthetic_log_replaces_an_earlier_one_and_nothing_of_others(tmp_path: Path) -> None:
    root, options = tmp_path / "clicks", {"rows": 40, "days": 2, "shards_per_day": 2}
    synthetic.generate(root, **options)
    synthetic.generate(root, **{**options, "days": 1, "first_day": "2026-11-15"}, overwrite=True)
    assert sorted(path.name for path in root.iterdir()) == [".dfm-log.json", "day=2026-11-15", "truth.json"]
    for name in ("day=2026-11-15/a.parquet", "day=2026-11-20/part-00000.parquet", "truth.json"):
        (root / name).parent.mkdir(exist_ok=True)
        before = (root / name).read_bytes() if (root / name).exists() else None
        (root / name).write_bytes(MINE)
        with pytest.raises((DataError, SettingsError), match="not made by dfm"):
            synthetic.generate(root, **options, overwrite=True)
        assert (root / name).read_bytes() == MINE
        (root / name).unlink() if before is None else (root / name).write_bytes(before)
    assert len(list(root.rglob("*.parquet"))) == 2


@pytest.mark.parametrize("name", ["clicks/day=2026-11-20/a.parquet", "job.toml", "results/run.json"])
def test_the_demo_replaces_nothing_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(MINE)
    with pytest.raises((DataError, SettingsError), match="not made by dfm"):
        demo.run_demo(str(tmp_path), 2_000, 0, lambda event: None, workers=1)
    assert (tmp_path / name).read_bytes() == MINE


def test_a_report_replaces_an_earlier_one_and_nothing_of_others(folder: str) -> None:
    url = files.join(folder, "report.html")
    for title in ("one", "two"):
        write_report(url, title, {"numbers": {"a": 1}})
    assert b"<h1>two</h1>" in files.read_bytes(url)
    files.write_bytes(url, b"<!doctype html><html lang=en><meta charset=utf-8>mine")
    with pytest.raises(SettingsError, match="was not made by dfm"):
        write_report(url, "three", {})


def test_a_driver_deletes_its_order_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "train", lambda job, run_id: SimpleNamespace(interrupted=False))
    order = json.dumps({"job": {"data": {"train": "x"}}, "run_id": "r"})
    for name, stays in (("dfm-driver-1.json", False), ("job.json", True)):
        (tmp_path / name).write_text(order)
        process.main(str(tmp_path / name))
        assert (tmp_path / name).exists() is stays


def test_a_model_takes_away_only_files_with_names_of_its_own(folder: str) -> None:
    model = make_model()
    url = files.join(folder, "notes.txt")
    files.write_bytes(url, MINE)
    model.save(folder)
    manifest = json.loads(files.read_bytes(files.join(folder, "model.json")))
    files.write_bytes(files.join(folder, "model.json"), json.dumps({**manifest, "superseded": ["notes.txt"]}).encode())
    model.save(folder)
    assert_still_there([url])


def test_the_output_and_the_cache_of_a_job_lie_apart_from_its_data(log: Path, client: Client, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(log)
    for table, key in (("output", "directory"), ("cluster", "cache")):
        for place in (log, f"{log}/more", log.parent, tmp_path / "link", f"file://{log}"):
            tables = job_tables(log, tmp_path)
            tables[table][key] = str(place)
            with pytest.raises(SettingsError, match=rf"{table}\.{key} \S+ (is|lies inside|contains) the input"):
                jobs.train(tables, client)
    tables = job_tables(log, tmp_path)
    tables["data"] = {"train": f"{log}/day=2026-11-14", "validation": f"{log}/day={LAST_DAY}"}
    tables["output"]["directory"] = f"{log}/day={LAST_DAY}/out"
    with pytest.raises(SettingsError, match="lies inside the input"):
        jobs.train(tables, client)


@pytest.mark.parametrize("overwrite", [False, "own", True])
def test_predictions_never_go_where_their_rows_or_their_model_lie(
    log: Path, client: Client, tmp_path: Path, overwrite: bool | str
) -> None:
    make_model().save(str(tmp_path / "model"))
    day = f"{log}/day={LAST_DAY}"
    before = {path: path.read_bytes() for path in log.rglob("*") if path.is_file()}
    for output in (
        day,
        f"file://{day}",
        f"{day}/scored",
        str(log),
        tmp_path,
        tmp_path / "model",
        f"{tmp_path}/model/x",
    ):
        with pytest.raises(SettingsError, match=r"output \S+ (is|lies inside|contains) the input"):
            jobs.predict(str(tmp_path / "model"), day, str(output), overwrite=overwrite, client=client)
    with pytest.raises(SettingsError, match="the input"):
        steps.predict_once(str(tmp_path / "model"), [day], day, steps.Where(client), beside=True)
    assert {path: path.read_bytes() for path in log.rglob("*") if path.is_file()} == before


def test_the_first_of_two_runs_cannot_settle_what_both_claimed(folder: str) -> None:
    first, second = Ledger(folder, "kind"), Ledger(folder, "kind")
    first.claim(["a", "b"])
    second.claim(["a", "b"])
    for name in ("a", "b"):
        files.write_bytes(files.join(folder, name), b"1")
    with pytest.raises(StorageError, match="another run claimed the same files"):
        first.settle()
    assert not first.is_settled()
    second.settle()
    assert second.is_settled()


@pytest.mark.parametrize("settles_first", [True, False])
def test_a_run_that_gives_its_files_up_leaves_those_of_another_one(folder: str, settles_first: bool) -> None:
    first, second = Ledger(folder, "predictions"), Ledger(folder, "predictions")
    first.claim(["part-a", "_SUCCESS"])
    files.write_bytes(f"{folder}/part-a", b"nothing")
    second.claim(["part-b", "_SUCCESS"])
    files.write_bytes(f"{folder}/part-b", b"rows")
    files.write_bytes(f"{folder}/_SUCCESS", b"")
    if not settles_first:
        first.withdraw()
    second.remove(["part-a"])
    second.settle()
    if settles_first:
        first.withdraw()
    assert files.names_in(folder) == [".dfm-predictions.json", "_SUCCESS", "part-b"]
    assert Ledger(folder, "predictions").read() == {"part-b": 4, "_SUCCESS": 0}


def test_a_file_of_a_run_that_was_overtaken_takes_no_place(folder: str) -> None:
    first, second = Ledger(folder, "kind"), Ledger(folder, "kind")
    mark = first.claim(["a", "b"])
    for name in ("a", "b"):
        if name == "b":
            second.claim(["b"])
        with contextlib.suppress(StorageError), first.writing(name, mark) as stream:
            stream.write(b"1")
    assert files.names_in(folder) == [".dfm-kind.json", "a"]


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_run_that_was_overtaken_takes_away_what_the_later_one_does_not_know(folder: str, is_settled: bool) -> None:
    """One of its files took its place while the other run claimed its own."""
    first, second = Ledger(folder, "kind"), Ledger(folder, "kind")
    mark = first.claim(["day=1/a", "day=2/b", "c"])
    second.claim(["day=2/b", "c"])
    for name in ("day=1/a", "day=2/b", "c"):
        files.write_bytes(files.join(folder, name), b"1")
    if is_settled:
        second.settle()
    with pytest.raises(StorageError, match="another run claimed the same files"), first.giving_way():
        first.check_claim(mark)
    assert files.exists(f"{folder}/day=2/b")
    assert not files.exists(f"{folder}/day=1/a")
    if not is_settled:
        second.settle()
    assert Ledger(folder, "kind").read() == {"c": 1, "day=2/b": 1}


def test_a_store_that_fails_for_a_run_which_nobody_overtook_leaves_its_files(folder: str) -> None:
    ledger = Ledger(folder, "kind")
    ledger.claim(["a"])
    files.write_bytes(files.join(folder, "a"), b"1")
    with pytest.raises(StorageError, match="disk full"), ledger.giving_way():
        raise StorageError("disk full")
    assert ledger.own() == ["a"]


def test_two_runs_that_write_different_files_both_settle(folder: str) -> None:
    first, second = Ledger(folder, "kind"), Ledger(folder, "kind")
    first.claim(["a"])
    second.claim(["b"])
    for name in ("a", "b"):
        files.write_bytes(files.join(folder, name), b"1")
    first.settle()
    assert not second.is_settled()
    second.settle()
    assert second.is_settled()
    assert Ledger(folder, "kind").own() == ["a", "b"]


def test_what_a_killed_run_claimed_long_ago_and_never_wrote_is_not_its_own_for_ever(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(folder, "kind").claim(["a"])
    later = time.time() + files.ABANDONED_AFTER + 1
    monkeypatch.setattr(time, "time", lambda: later)
    second = Ledger(folder, "kind")
    second.claim(["b"])
    files.write_bytes(files.join(folder, "b"), b"1")
    second.settle()
    files.write_bytes(files.join(folder, "a"), MINE)
    with pytest.raises(SettingsError, match="was not made by dfm"):
        Ledger(folder, "kind").claim(["a"])


@pytest.mark.parametrize(
    "claims", [5, {"x": 5}, {"x": {"since": "now", "names": ["a"]}}, {"x": {"since": 1, "names": [2]}}]
)
def test_claims_that_are_none_are_passed_over(tmp_path: Path, claims: object) -> None:
    content = {"made_by": "dfm", "files": {}, "claims": claims}
    (tmp_path / ".dfm-kind.json").write_text(json.dumps(content))
    ledger = Ledger(str(tmp_path), "kind")
    ledger.claim(["a"])
    (tmp_path / "a").write_bytes(b"1")
    ledger.settle()
    assert json.loads((tmp_path / ".dfm-kind.json").read_text()) == {"made_by": "dfm", "files": {"a": 1}}


def test_a_claimed_file_that_is_gone_is_no_settled_one(folder: str) -> None:
    ledger = Ledger(folder, "kind")
    ledger.claim(["a", "b"])
    files.write_bytes(files.join(folder, "a"), b"1")
    ledger.check_written(["b"])
    with pytest.raises(StorageError, match="b is gone"):
        ledger.settle()
    files.write_bytes(files.join(folder, "b"), b"1")
    ledger.settle()
    assert ledger.read() == {"a": 1, "b": 1}
