"""No secret gets into a job: URLs and options that hold one are refused, without showing it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from dfm.errors import SettingsError
from dfm.settings.job import Job, load_job
from dfm.storage.credentials import check_options, check_url, merged, parse_options

SECRET = "hunter2"


def assert_refused(told: str, call: Callable[[], object]) -> None:
    """The call ends with a SettingsError that says so, and does not show the secret."""
    with pytest.raises(SettingsError, match=told) as refusal:
        call()
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/clicks",
        f"ftp://someone:{SECRET}@host/clicks",
        f"https://{SECRET}@host/clicks",
        f"https://host/clicks?X-Amz-Signature={SECRET}",
        f"https://host/clicks?api-key={SECRET}",
        f"https://host/clicks?key={SECRET}",
        f"https://host/clicks?passwd={SECRET}",
        f"https://account.blob.core.windows.net/c/x?sv=2026&sig={SECRET}",
        f"simplecache::s3://AKIA:{SECRET}@bucket/clicks",
    ],
)
def test_a_url_with_a_secret_is_refused_with_a_remedy_that_does_not_show_it(url):
    for overrides in ([f"data.train={url}"], [f"data.validation={url}"], [f"output.directory={url}"]):
        told = r"(data|output)\.\w+ = .*\(hidden\).*in the environment"
        assert_refused(told, functools.partial(load_job, {}, overrides))


@pytest.mark.parametrize(
    "url",
    [
        "clicks/day=*/*.parquet",
        "/data/who@where/clicks?.parquet",
        "s3://bucket/day=2026-11-21/*.parquet",
        "s3://bucket/time=10:00@utc/x.parquet",
        "abfs://container@account.dfs.core.windows.net/clicks",
        "sftp://someone@host/clicks",
        "https://host:8080/clicks.parquet?version=3",
        "simplecache::s3://bucket/clicks",
    ],
)
def test_a_url_without_a_secret_passes(url):
    assert load_job({}, [f"data.train={url}"]).data.train == (url,)


@pytest.mark.parametrize("url", ["reference://x", "filecache::reference://x", "dask::s3://b/x", "git://repo:main@x"])
def test_a_filesystem_that_interprets_what_it_reads_is_refused(url):
    with pytest.raises(SettingsError, match=r"data\.train .*interprets what it reads"):
        load_job({"data": {"train": [url]}})


@pytest.mark.parametrize(
    "options",
    [
        {"key": SECRET},
        {"secret": SECRET},
        {"token": SECRET},
        {"password": SECRET},
        {"account_key": SECRET},
        {"sas_token": SECRET},
        {"connection_string": SECRET},
        {"client_kwargs": {"aws_secret_access_key": SECRET}},
        {"headers": {"Authorization": SECRET}},
        {"headers": {"x-api-key": SECRET}},
        {"account-key": SECRET},
        {"passphrase": SECRET},
        {"pwd": SECRET},
        {"endpoint_url": f"http://someone:{SECRET}@host"},
    ],
)
def test_an_option_with_a_secret_is_refused_by_its_name(options):
    (key,) = options
    told = rf"data\.storage_options\.{key}.*in the environment"
    assert_refused(told, lambda: load_job({"data": {"storage_options": options}}))


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_SECRET_ACCESS_KEY": SECRET},
        {"DB_PASSWORD": SECRET},
        {"HF_TOKEN": SECRET},
        {"PROXY": f"http://a:{SECRET}@b"},
    ],
)
def test_a_variable_with_a_secret_is_refused_by_its_name(variables):
    (name,) = variables
    told = rf"kubernetes\.environment\.{name}"
    assert_refused(told, lambda: load_job({"kubernetes": {"environment": variables}}))


def test_variables_that_say_where_pass():
    variables = {
        "AWS_ENDPOINT_URL": "http://store", "GOOGLE_APPLICATION_CREDENTIALS": "/var/run/key.json", "TOKENIZERS": "no",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "token", "S3_KEY_PREFIX": "clicks", "HF_TOKEN": "",
    }  # fmt: skip
    assert load_job({"kubernetes": {"environment": variables}}).kubernetes.environment == variables


@pytest.mark.parametrize(
    "options",
    [{"kwargs": [{"password": SECRET}]}, {"headers": [["Authorization", SECRET]]}, {"urls": [f"s3://a:{SECRET}@b"]}],
)
def test_a_secret_in_a_list_is_refused(options):
    assert_refused(r"data\.storage_options\.(kwargs|headers|urls)", lambda: check_options(options))


@pytest.mark.parametrize("options", [{"fo": "x.json"}, {"target_protocol": "reference"}])
def test_an_option_that_wraps_an_interpreting_filesystem_is_refused(options):
    with pytest.raises(SettingsError, match="interprets what it reads"):
        check_options(options)


def test_options_that_say_where_and_how_pass():
    options = {
        "endpoint_url": "http://localhost:9000", "anon": True, "profile": "ads", "requester_pays": True,
        "token": "anon", "client_kwargs": {"region_name": "eu-west-1"}, "use_ssl": False,
    }  # fmt: skip
    assert Job.from_dict({"data": {"storage_options": options}}).data.storage_options == options


def test_options_of_the_command_line_become_tables_and_values():
    pairs = ("anon=true", "client_kwargs.endpoint_url=http://x:1/?a=b", "client_kwargs.retries=3", "profile=007x")
    assert parse_options(pairs) == {
        "anon": True,
        "client_kwargs": {"endpoint_url": "http://x:1/?a=b", "retries": 3},
        "profile": "007x",
    }


@pytest.mark.parametrize("pairs", [("anon",), ("=1",), ("a..b=1",), ("a=1", "a.b=2"), (f"key={SECRET}",)])
def test_options_of_the_command_line_that_are_none_are_refused(pairs):
    assert_refused("--storage-option", lambda: parse_options(pairs))


def test_a_place_of_the_command_line_is_checked_like_one_of_a_job():
    with pytest.raises(SettingsError, match="MODEL = s3://\\(hidden\\)@bucket"):
        check_url(f"s3://AKIA:{SECRET}@bucket/model", "MODEL")


def test_options_are_merged_table_by_table():
    job = {"anon": True, "client_kwargs": {"region_name": "a", "endpoint_url": "http://inside"}}
    assert merged(job, parse_options(("client_kwargs.region_name=b", "anon=false"))) == {
        "anon": False,
        "client_kwargs": {"region_name": "b", "endpoint_url": "http://inside"},
    }
    assert merged(job, {"anon": {"x": 1}})["anon"] == {"x": 1}
    assert job["client_kwargs"]["region_name"] == "a"
