"""Clusters of other people's making: `dask scheduler` and `dask worker` as commands, TLS on, jobs handed over."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.cluster import connect as clusters
from dfm.errors import ClusterError, SettingsError
from dfm.launch import on_dask
from dfm.model.fm_model import FMModel
from dfm.runs.outcome import Outcome, outcome_of
from dfm.runs.record import RunRecord, read_events, read_run, request_cancel
from dfm.settings.job import Job
from dfm.settings.tables import ClusterSettings
from tests.support.real_cluster import RealCluster, make_certificates, real_cluster, wait_until
from tests.support.small_jobs import job_tables, run_of

LONG = {"n_epochs": 900, "averages_per_epoch": 2}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificates: dict[str, str]) -> Iterator[RealCluster]:
    """A scheduler and two workers, started by command, that speak TLS only."""
    with real_cluster(tmp_path_factory.mktemp("secure"), tls=certificates) as cluster:
        yield cluster


def secured(cluster: RealCluster) -> dict[str, str | int]:
    """[cluster] of a job for it."""
    tls = {f"tls_{name}": path for name, path in cluster.tls.items()}
    return {"scheduler": cluster.address, "min_workers": 2, "worker_timeout": 120, **tls}


def dfm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfm", *arguments]
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert not check or done.returncode == 0, done.stderr
    return done


def to_toml(tables: dict[str, dict[str, object]]) -> str:
    import json

    return "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
        for name, table in tables.items()
    )


@pytest.fixture(scope="module")
def expected(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the parameters of the small job."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("expected")), client).parameters_sha256


def test_a_job_file_runs_unchanged_on_a_tls_cluster(
    log: Path, secure: RealCluster, expected: str, tmp_path: Path
) -> None:
    assert secure.address.startswith("tls://")
    result = jobs.train(job_tables(log, tmp_path, cluster=secured(secure)))
    assert result.parameters_sha256 == expected


def test_a_client_without_certificates_is_told_what_it_needs(log: Path, secure: RealCluster, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path, cluster={"scheduler": secure.address})
    with pytest.raises(ClusterError, match=r"needs cluster\.tls_ca, cluster\.tls_cert and cluster\.tls_key"):
        jobs.train(tables)


def test_a_submitted_job_outlives_the_command_and_is_followed_from_anywhere(
    log: Path, secure: RealCluster, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(to_toml(job_tables(log, tmp_path, cluster=secured(secure))))
    run_id = dfm("submit", str(path)).stdout.splitlines()[0]
    output = str(tmp_path / "out")
    assert dfm("status", output, "--wait").returncode == 0
    found = outcome_of(output, run_id=run_id)
    assert found.succeeded, found.reason
    assert found.record is not None
    assert found.record.parameters_sha256 == expected
    assert found.record.submitted <= found.record.started <= found.record.ended
    assert found.record.pid != os.getpid()
    assert FMModel.load(f"{output}/model").parameters_sha256() == expected
    assert run_id in dfm("list", str(tmp_path)).stdout
    assert "epoch" in dfm("logs", str(path)).stdout
    known = ClusterSettings(**secured(secure))  # type: ignore[arg-type]
    with clusters.connect(known) as client:
        assert on_dask.submitted_to(client)[run_id] == output


def test_a_submitted_job_is_cancelled_from_another_machine(log: Path, secure: RealCluster, tmp_path: Path) -> None:
    job = Job.from_dict(job_tables(log, tmp_path, cluster=secured(secure), training=LONG))
    record = on_dask.submit(job)
    output = job.output.directory
    wait_until(lambda: (found := read_run(output)) and found.progress.get("epoch"), secure)
    (tmp_path / "again.toml").write_text(to_toml(job_tables(log, tmp_path, cluster=secured(secure), training=LONG)))
    again = dfm("submit", str(tmp_path / "again.toml"), check=False)
    assert again.returncode == 2, again.stderr
    assert f"holds run {record.run_id}, which is running" in again.stderr
    done = dfm("cancel", output, "--wait")
    assert f"run {record.run_id} is over: cancelled" in done.stdout
    assert outcome_of(output).exit_code == 7
    assert dfm("status", output, "--wait", check=False).returncode == 7


def drive_for_long(log: Path, folder: Path, cluster: RealCluster) -> RunRecord:
    """Submit a job of many epochs; its record once it has trained some."""
    table = {"scheduler": cluster.address, "worker_timeout": 120}
    training = {"n_epochs": 60, "averages_per_epoch": 2}
    job = Job.from_dict(job_tables(log, folder, cluster=table, training=training))
    on_dask.submit(job)
    record: RunRecord = wait_until(lambda: (found := run_of(job)).progress.get("epoch", 0) > 3 and found, cluster)
    return record


def kill_worker(driver: RunRecord, cluster: RealCluster) -> None:
    os.kill(driver.pid, signal.SIGKILL)


def stop_worker(driver: RunRecord, cluster: RealCluster) -> None:
    """End the command `dask worker` as an init system or Kubernetes does."""
    above = {process.pid for process in psutil.Process(driver.pid).parents()}
    (command,) = [process for process in cluster.processes.values() if process.pid in above]
    command.terminate()


def retire_worker(driver: RunRecord, cluster: RealCluster) -> None:
    """End its worker as a cluster does that grows smaller."""
    with Client(cluster.address, set_as_default=False) as client:
        (address,) = [worker for worker, pid in client.run(os.getpid).items() if pid == driver.pid]
        client.retire_workers([address], close_workers=True)


@pytest.mark.patient
@pytest.mark.parametrize("end", [kill_worker, stop_worker, retire_worker])
def test_a_driver_whose_worker_ends_goes_on_elsewhere(
    log: Path, tmp_path: Path, end: Callable[[RunRecord, RealCluster], None]
) -> None:
    with real_cluster(tmp_path / "cluster", 2) as cluster:
        first = drive_for_long(log, tmp_path, cluster)
        output = str(tmp_path / "out")
        end(first, cluster)
        states = []

        def second() -> RunRecord | None:
            found = read_run(output)
            assert found
            states.append(found.state)
            return found if found.pid != first.pid and found.progress.get("epoch", 0) > 3 else None

        assert wait_until(second, cluster).run_id == first.run_id
        assert not {"failed", "finished"} & {*states}
        assert [event["epoch"] for event in read_events(output) if event["event"] == "resumed"]
        request_cancel(output)
        wait_until(lambda: (found := read_run(output)) and found.state == "cancelled", cluster)


@pytest.mark.patient
def test_a_cluster_that_is_restarted_has_forgotten_its_drivers(log: Path, tmp_path: Path) -> None:
    with real_cluster(tmp_path / "cluster", 2) as cluster:
        drive_for_long(log, tmp_path, cluster)
        with Client(cluster.address, set_as_default=False) as client:
            client.restart()
        output = str(tmp_path / "out")
        states = []

        def over() -> Outcome | None:
            found = outcome_of(output)
            states.append(found.state)
            return found if found.is_over else None

        found = wait_until(over, cluster)
        assert found.exit_code == 4
        assert "nobody restarts the cluster" in found.reason or found.state == "lost"  # before it could write that
        assert "retrying" not in states


def test_submitting_needs_a_cluster_that_stays(log: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"name it in cluster\.scheduler"):
        on_dask.submit(Job.from_dict(job_tables(log, tmp_path)))
    with pytest.raises(SettingsError, match="ends with its client"):
        on_dask.submit(Job.from_dict(job_tables(log, tmp_path, cluster={"factory": "a:b"})))


def test_workers_on_other_hosts_need_an_output_they_can_reach(
    log: Path, tmp_path: Path, secure: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "shares_disk", lambda client: False)
    job = Job.from_dict(job_tables(log, tmp_path, cluster=secured(secure)))
    with pytest.raises(SettingsError, match=r"output\.directory = .* is a path of this machine"):
        on_dask.submit(job)
    shared = dataclasses.replace(job, output=dataclasses.replace(job.output, directory=f"file://{tmp_path}/out"))
    with pytest.raises(SettingsError, match=r"data\.train = .* is a path of this machine"):
        on_dask.submit(shared)
    assert not (tmp_path / "out").exists()


def test_a_cache_is_where_the_submitter_means_it_unless_workers_have_disks_of_their_own(
    log: Path, tmp_path: Path, secure: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stands in its worker's folder."""
    monkeypatch.chdir(tmp_path)
    job = Job.from_dict(job_tables(log, tmp_path, cluster={**secured(secure), "cache": "cache"}))
    on_dask.submit(job)
    wait_until(lambda: (found := read_run(job.output.directory)) and found.is_over, secure)
    assert outcome_of(job.output.directory).succeeded
    assert [*(tmp_path / "cache").iterdir()]
    assert not (secure.folder / "cache").exists()
    handed: list[Job] = []
    monkeypatch.setattr(clusters, "shares_disk", lambda client: False)
    monkeypatch.setattr(on_dask, "_check_paths", lambda job, client: None)
    monkeypatch.setattr(on_dask, "fire_and_forget", lambda future: None)
    monkeypatch.setattr(Client, "submit", lambda client, drive, own, *_, **__: handed.append(own))
    on_dask.submit(dataclasses.replace(job, output=dataclasses.replace(job.output, directory=f"{tmp_path}/elsewhere")))
    assert handed[0].cluster.cache == "cache"


def test_the_model_to_go_on_from_is_named_in_full(
    log: Path, tmp_path: Path, secure: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job.from_dict(job_tables(log, tmp_path, training={"warm_start": "old/model"}, cluster=secured(secure)))
    assert on_dask.with_absolute_paths(job).training.warm_start == str(tmp_path / "old" / "model")
    cold = Job.from_dict(job_tables(log, tmp_path))
    assert on_dask.with_absolute_paths(cold).training.warm_start == ""
    monkeypatch.setattr(clusters, "shares_disk", lambda client: False)
    shared = dataclasses.replace(
        job,
        data=dataclasses.replace(job.data, train=("s3://clicks/day=1",)),
        output=dataclasses.replace(job.output, directory=f"file://{tmp_path}/out"),
    )
    with pytest.raises(SettingsError, match=r"training\.warm_start = .* is a path of this machine"):
        on_dask.submit(shared)
