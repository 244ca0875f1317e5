"""A run that Airflow starts on Kubernetes: one DaskJob at a time, replaced by the next try."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfm.airflow import runtime
from dfm.kubernetes import api as api_module
from dfm.runs import record as runs
from dfm.settings.job import Job
from tests.support.api_server import ApiServer, api_server

pytest.importorskip("kubernetes")
RUN_ID = "ctr_daily.train.20261116T000000"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.01)
    with api_server(tmp_path / "kubeconfig") as store:
        yield store


def names_of(server: ApiServer, kind: str) -> list[str]:
    return [body["metadata"]["name"] for body in server.objects.values() if body["kind"] == kind]


def test_each_try_creates_the_job_of_its_run_anew(server: ApiServer, tmp_path: Path):
    sizes = {"workers": 2, "worker_memory": "4GiB", "driver_memory": "2GiB", "scratch": "20GiB"}
    tables = {
        "data": {"train": "s3://in/x"},
        "output": {"directory": f"memory://airflow/{tmp_path.name}"},
        "kubernetes": sizes,
    }
    job = Job.from_dict(tables)
    runtime.start_dask_job(job, RUN_ID)
    (first,) = names_of(server, "DaskJob")
    assert first.startswith("ctr-daily-")
    record = runs.read_run(job.output.directory)
    assert record is not None
    assert (record.run_id, record.state) == (RUN_ID, "submitted")
    runtime.start_dask_job(job, RUN_ID)
    (second,) = names_of(server, "DaskJob")
    assert second != first
    assert second.startswith("ctr-daily-")
