"""The report of a task, on a page of Airflow's own server: for those who may see it, and only what dfm has written."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dfm.airflow import runtime
from dfm.pages.page import write_report
from dfm.storage import files

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]


PROJECT = Path(__file__).parents[2] / "pyproject.toml"


class Instance(SimpleNamespace):
    """A task instance that keeps what is pushed."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed = {key: json.dumps(value)}


@pytest.fixture
def instance() -> Instance:
    return Instance(dag_id="ctr", run_id="scheduled__2026-11-18T00:00:00+00:00", task_id="train", map_index=-1)


class Session:
    """A database in which at most one XCom lies."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def scalars(self, _: object) -> Session:
        return self

    def first(self) -> Any:
        return None if self.value is None else SimpleNamespace(value=self.value)


def asked(value: object) -> Any:
    from dfm.airflow.pages import report

    return report("ctr", "run", "train", Session(value))


@pytest.mark.parametrize("place", ["", "memory:/"])
def test_the_link_of_a_report_leads_to_the_page_that_shows_it(instance: Instance, place: str, tmp_path: Path) -> None:
    url = write_report(f"{place}{tmp_path}/report.html", "the night", {"rows": {"read": 9000}})
    link = runtime.address_of_report(url, {}, {"ti": instance})
    assert not link.startswith(("/", "http"))  # Airflow may be served below a path
    assert urlsplit(link).path == "dfm/report"
    assert {name: value[0] for name, value in parse_qs(urlsplit(link).query).items()} == {
        "dag_id": "ctr", "run_id": instance.run_id, "task_id": "train", "map_index": "-1",
    }  # fmt: skip
    answer = asked(instance.pushed[runtime.REPORT])
    assert answer.status_code == 200
    assert answer.body == files.read_bytes(url)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert runtime.address_of_report("https://results/report.html", {}, {}) == "https://results/report.html"


def test_the_page_shows_nothing_but_reports_of_dfm_and_says_where_one_lies(instance: Instance, tmp_path: Path) -> None:
    secret = tmp_path / "airflow.cfg"
    secret.write_text("fernet_key = abc")
    for path, why in ((secret, "it is no report of dfm"), (tmp_path / "gone.html", "No such file")):
        runtime.address_of_report(str(path), {}, {"ti": instance})
        answer = asked(instance.pushed[runtime.REPORT])
        assert answer.status_code == 404
        assert str(path) in answer.body.decode()
        assert why in answer.body.decode()
        assert "abc" not in answer.body.decode()


@pytest.mark.parametrize("value", [None, "s3://backend/key", json.dumps(["a"]), json.dumps({"url": "x"})])
def test_a_task_without_a_report_is_told(value: object) -> None:
    answer = asked(value)
    assert answer.status_code == 404
    assert "has left no report" in answer.body.decode()


def test_airflow_finds_the_plugin_and_loads_its_pages_no_sooner_than_they_are_asked_for() -> None:
    [(name, place)] = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["airflow.plugins"].items()
    module, plugin = place.split(":")
    code = (
        f"import sys; from {module} import {plugin} as plugin; from airflow.plugins_manager import is_valid_plugin; "
        f"assert is_valid_plugin(plugin) and plugin.name == {name!r}; assert 'dfm.airflow.pages' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_who_is_not_logged_in_sees_nothing() -> None:
    from airflow.api_fastapi.app import create_app
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from dfm.airflow.plugin import DfmPlugin

    create_app(apps="core")  # whoever may come in is this one's to say
    server = FastAPI()
    for page in DfmPlugin.fastapi_apps:
        server.mount(page["url_prefix"], page["app"])
    client = TestClient(server)
    query = "dag_id=ctr&run_id=r&task_id=train"
    assert client.get(f"/dfm/report?{query}").status_code == 401
    assert client.get(f"/dfm/report?{query}", headers={"Authorization": "Bearer abc"}).status_code in (401, 403)
