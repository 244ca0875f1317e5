"""A real Airflow on SQLite, a real Dask cluster and four days of clicks; made once, shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_AIRFLOW = importlib.util.find_spec("airflow")  # to look for a module inside would import it, before it has its home
if _AIRFLOW is None or _AIRFLOW.origin is None:  # without an origin it is this folder
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.support.real_airflow import DAGS, HOME, PATIENCE, TRAINING_DAGS, DaskCluster, command


@pytest.fixture(scope="session", autouse=True)
def airflow_home() -> Iterator[Path]:
    """The home of an Airflow whose database was made by `airflow db migrate`."""
    shutil.copytree(DAGS, HOME / "dags")
    (HOME / "dags" / "training.py").write_text(TRAINING_DAGS)
    done = subprocess.run([command("airflow"), "db", "migrate"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (HOME / "airflow.db").exists()
    yield HOME
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two workers, known to Airflow as the connection `dask_default`."""
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    os.environ["AIRFLOW_CONN_DASK_DEFAULT"] = cluster.address.replace("tcp://", "dask://")
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def log() -> Path:
    """24,000 rows of clicks on four days, 14 to 17 November 2026, by `dfm synth`; each day has its marker."""
    folder = HOME / "log"
    arguments = ("synth", str(folder), "--rows", "24000", "--days", "4", "--shards-per-day", "2", "--workers", "1")
    subprocess.run([sys.executable, "-m", "dfm", *arguments], check=True, stdout=subprocess.DEVNULL)
    for day in folder.glob("day=*"):
        (day / "_SUCCESS").touch()
    return folder
