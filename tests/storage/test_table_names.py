"""How tables are named: which folder, which version, and no secret on the way."""

from __future__ import annotations

import os

import pytest

from dfm.errors import SettingsError
from dfm.settings.job import Job
from dfm.storage import files, ownership
from dfm.storage.credentials import check_url
from dfm.storage.tables import DELTA, ICEBERG, TableUrl, folder_of

NAMES = [
    ("delta://clicks", DELTA, "clicks", ""),
    ("delta:///data/clicks@v12", DELTA, "/data/clicks", "12"),
    ("delta+s3://bucket/clicks@v0", DELTA, "s3://bucket/clicks", "0"),
    ("delta://s3://bucket/clicks", DELTA, "s3://bucket/clicks", ""),
    ("delta+file:///shared/clicks", DELTA, "file:///shared/clicks", ""),
    ("delta+abfss://c@account.dfs.core.windows.net/t@v3", DELTA, "abfss://c@account.dfs.core.windows.net/t", "3"),
    ("iceberg://prod/ads.clicks", ICEBERG, "prod/ads.clicks", ""),
    ("iceberg://prod/ads.eu.clicks@8160425288191026910", ICEBERG, "prod/ads.eu.clicks", "8160425288191026910"),
    ("iceberg://prod/ads.clicks@nightly", ICEBERG, "prod/ads.clicks", "nightly"),
]


@pytest.mark.parametrize(("url", "kind", "place", "version"), NAMES)
def test_a_name_says_which_table_and_which_version_and_is_written_as_it_was_read(
    url: str, kind: str, place: str, version: str
) -> None:
    table = TableUrl.of(url)
    assert table is not None
    assert (table.kind, table.place, table.version, table.url) == (kind, place, version, url)
    assert TableUrl.of(table.at("7").url) == table.at("7")
    assert folder_of(url) == (place if kind == DELTA else "")


@pytest.mark.parametrize("url", ["clicks", "/data/delta", "s3://bucket/delta", "deltas://x", "memory://iceberg/x"])
def test_other_paths_are_no_tables(url: str) -> None:
    assert TableUrl.of(url) is None
    assert folder_of(url) == url


@pytest.mark.parametrize(
    "url",
    ["delta://", "delta:///", "delta://clicks@12", "delta://clicks@v", "delta://clicks@newest", "delta://clicks@V12",
     "iceberg://prod", "iceberg://prod/clicks", "iceberg:///ads.clicks", "iceberg+s3://bucket/table",
     "iceberg://prod/ads.clicks@"],
)  # fmt: skip
def test_misspelled_names_are_refused_when_the_job_is_read_with_the_right_spelling(url: str) -> None:
    with pytest.raises(SettingsError, match=r"names no table: expected (delta|iceberg)://"):
        Job.from_dict({"data": {"train": url}})


def test_a_table_s_url_holds_no_secret_however_it_is_wrapped() -> None:
    for url in ("delta+s3://key:secret@bucket/t", "delta://s3://key:secret@bucket/t", "delta+https://h/t?sig=secret"):
        with pytest.raises(SettingsError, match="holds a password or a signature") as refused:
            Job.from_dict({"data": {"train": url}})
        assert "key:secret" not in str(refused.value)
    check_url("delta+abfss://container@account.dfs.core.windows.net/t@v3")


def test_a_relative_folder_is_written_in_full_for_other_processes(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert files.absolute("delta://clicks@v3") == f"delta://{here}/clicks@v3"
    assert files.absolute("delta+file:///x") == "delta+file:///x"
    assert files.absolute("delta+s3://bucket/clicks") == "delta+s3://bucket/clicks"
    assert files.absolute("iceberg://prod/ads.clicks@5") == "iceberg://prod/ads.clicks@5"


def test_nothing_is_written_into_a_table_that_is_read(tmp_path) -> None:
    (tmp_path / "clicks").mkdir()
    with pytest.raises(SettingsError, match="lies inside the input"):
        ownership.check_apart(str(tmp_path / "clicks/out"), [f"delta://{tmp_path}/clicks@v1"], "output.directory")
    ownership.check_apart(str(tmp_path / "out"), [f"delta://{tmp_path}/clicks", "iceberg://prod/ads.t"], "output")
