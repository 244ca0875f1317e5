"""Small files on S3: what holds on a disk holds there, under throttling and failures too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dfm.data.parquet import describe_shard
from dfm.errors import SettingsError, StorageError
from dfm.model.fm_model import FMModel
from dfm.storage import files, retry
from dfm.storage.ownership import Ledger, check_apart, is_array_file
from tests.support.flaky_proxy import KINDS, Faults


def test_files_are_written_listed_read_and_removed(bucket: str) -> None:
    for name in ("a/b.json", "a/deep/c", "d"):
        files.write_bytes(f"{bucket}/{name}", name.encode())
    assert files.read_bytes(f"{bucket}/a/b.json") == b"a/b.json"
    assert files.size_of(f"{bucket}/a/b.json") == 8
    assert (files.names_in(f"{bucket}/a"), files.folders_in(f"{bucket}/a")) == (["b.json"], ["deep"])
    assert files.folders_in(bucket) == ["a"]
    assert files.names_in(f"{bucket}/nowhere") == []
    files.remove(f"{bucket}/d")
    files.remove(f"{bucket}/d")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{bucket}/d")


def test_of_many_who_create_a_file_one_wins(bucket: str) -> None:
    start = threading.Barrier(6)

    def create(number: int) -> bool:
        start.wait()
        try:
            files.create_bytes(f"{bucket}/lock", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(create, range(6)))
    assert sum(won) == 1
    assert files.read_bytes(f"{bucket}/lock") == b"%d" % won.index(True)


def test_who_created_a_file_knows_it_although_the_answer_got_lost(bucket: str, faults: Faults) -> None:
    """The store does the work and answers 500; the client's repetition is refused because of its own file."""
    faults.kinds = ("done but failed",)
    faults.rate = 0.5
    for number in range(8):
        files.create_bytes(f"{bucket}/{number}", b"mine")
        with pytest.raises(FileExistsError):
            files.create_bytes(f"{bucket}/{number}", b"mine")
    assert faults.counts["done but failed"] > 3


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, faults: Faults) -> Iterator[str]:
    faults.kinds = (request.param,)
    yield request.param
    faults.kinds = KINDS


def test_a_store_that_fails_often_is_asked_until_it_answers(bucket: str, faults: Faults, kind: str) -> None:
    faults.rate = 0.4
    for number in range(5):
        url = f"{bucket}/folder/{number}"
        files.write_bytes(url, b"x" * number)
        assert files.read_bytes(url) == b"x" * number
        with files.writing(f"{url}-stream") as stream:
            stream.write(b"y" * 100)
        with files.PatientStream(f"{url}-stream") as stream:
            assert stream.seek(90) == 90
            assert stream.read() == b"y" * 10
    assert len(files.names_in(f"{bucket}/folder")) == 10
    assert faults.counts[kind] > 5


def test_a_store_that_never_answers_is_an_error_that_says_so(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE", 0.5)
    faults.kinds, faults.rate = ("slow down",), 1.0
    with pytest.raises(StorageError, match=rf"{bucket}/x does not answer \(.*\), asked again.*run the same"):
        files.read_bytes(f"{bucket}/x")
    faults.kinds = KINDS


def test_a_store_that_denies_access_is_asked_once(bucket: str, faults: Faults) -> None:
    faults.kinds, faults.rate = ("denied",), 1.0
    faults.counts.clear()
    for action in (files.read_bytes, files.exists, files.names_in, FMModel.load, describe_shard):
        with pytest.raises(
            StorageError, match=rf"{bucket}/x.*: access denied \(.*\); check that this process finds cred"
        ):
            action(f"{bucket}/x")
    with pytest.raises(StorageError, match="access denied"):
        files.write_bytes(f"{bucket}/x", b"")
    assert faults.counts["denied"] < 15
    faults.kinds = KINDS


def test_a_process_without_credentials_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(
        StorageError, match=r"access denied \(.*credentials.*\); check that this process finds credentials"
    ):
        files.read_bytes(f"{bucket}/x", {"skip_instance_cache": True})


def test_a_stream_that_breaks_off_leaves_nothing(bucket: str) -> None:
    def fail() -> None:
        with files.writing(f"{bucket}/part") as stream:
            stream.write(b"half")
            raise RuntimeError("the task was killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert files.names_in(bucket) == []


def test_a_url_with_credentials_is_not_opened(bucket: str) -> None:
    with pytest.raises(SettingsError, match="in the environment"):
        files.read_bytes(bucket.replace("s3://", "s3://key:secret@"))


def test_a_ledger_removes_its_own_files_from_a_store_and_an_output_apart_from_its_input(bucket: str) -> None:
    for name in ("log/day=1/part-00000.parquet", "scored/part-00000-6d.snappy.parquet", "scored/_SUCCESS"):
        files.write_bytes(f"{bucket}/{name}", b"" if name.endswith("_SUCCESS") else b"mine")
    ledger = Ledger(f"{bucket}/scored", "predictions")
    ledger.claim(["part-00000.parquet"])
    files.write_bytes(f"{bucket}/scored/part-00000.parquet", b"dfm")
    ledger.settle()
    assert (ledger.own(), ledger.foreign()) == (["part-00000.parquet"], ["_SUCCESS", "part-00000-6d.snappy.parquet"])
    with pytest.raises(SettingsError, match="_SUCCESS is there and was not made by dfm"):
        ledger.claim(["_SUCCESS"])
    ledger.remove()
    assert files.names_in(f"{bucket}/scored") == [".dfm-predictions.json", "_SUCCESS", "part-00000-6d.snappy.parquet"]
    assert not is_array_file(f"{bucket}/scored/_SUCCESS"), "of an empty object no range can be read"
    check_apart(f"{bucket}/scored", [f"{bucket}/log"], "output")
    for output in ("log", "log/day=1/x", "", "log/day=1"):
        with pytest.raises(SettingsError, match="the input"):
            check_apart(f"{bucket.replace('s3://', 's3a://')}/{output}", [f"{bucket}/log/day=*"], "output")


def answer(code: str, status: int) -> OSError:
    """What s3fs raises for an answer of the store."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    told = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = ClientError(told, "PutObject")
    found: OSError = translate_boto_error(error)
    found.__cause__ = error
    return found


def refusing_once(monkeypatch: pytest.MonkeyPatch, error: OSError) -> list[int]:
    """Puts on a condition are answered so, once; how many were made."""
    opened, asked = files.open_store, list[int]()

    def open_store(url: str, options: files.Options = None) -> Any:
        filesystem, path = opened(url, options)
        put = filesystem.pipe_file

        def pipe_file(path: str, data: bytes, **how: Any) -> Any:
            asked.append(len(data))
            if how.get("mode") == "create" and len(asked) == 1:
                raise error
            return put(path, data, **how)

        monkeypatch.setattr(filesystem, "pipe_file", pipe_file)
        return filesystem, path

    monkeypatch.setattr(files, "open_store", open_store)
    return asked


def test_of_two_puts_at_the_same_instant_the_one_that_conflicts_is_made_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refusing_once(monkeypatch, answer("ConditionalRequestConflict", 409))
    files.create_bytes(f"{bucket}/conflict", b"mine")
    assert len(asked) == 2


def test_a_store_without_conditional_puts_gets_a_look_before_the_write(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_once(monkeypatch, answer("NotImplemented", 501))
    files.create_bytes(f"{bucket}/without", b"mine")
    assert files.read_bytes(f"{bucket}/without") == b"mine"
    monkeypatch.undo()
    refusing_once(monkeypatch, answer("NotImplemented", 501))
    with pytest.raises(FileExistsError):
        files.create_bytes(f"{bucket}/without", b"other")


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    nowhere = bucket.rpartition("/")[0] + "/no-such-bucket" if bucket.count("/") > 2 else "s3://no-such-bucket"
    for write in (files.write_bytes, files.create_bytes):
        with pytest.raises(StorageError, match="there is no such bucket or container"):
            write(f"{nowhere}/run.json", b"1")
