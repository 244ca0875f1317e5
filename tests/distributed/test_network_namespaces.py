"""Several hosts on one machine: scheduler and workers in network namespaces of their own, one of them cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.cluster import connect as clusters
from dfm.distributed.cluster.remote import remote_client
from dfm.errors import SettingsError
from dfm.launch.on_dask import submit
from dfm.settings.job import Job
from dfm.settings.tables import ClusterSettings
from tests.support.network import Network, NotAllowed, network_of
from tests.support.real_cluster import RealCluster, make_certificates, wait_until
from tests.support.small_jobs import job_tables

pytestmark = pytest.mark.patient


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(network_of(("scheduler", "worker-1", "worker-2")))
        except NotAllowed as reason:
            pytest.skip(str(reason))
        yield found


@pytest.fixture(scope="module")
def hosts(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A scheduler and two workers on three hosts, under TLS; links that are cut are noticed after seconds."""
    folder = tmp_path_factory.mktemp("hosts")
    short = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s"}
    found = RealCluster(folder, make_certificates(folder / "tls"), environment=short)
    try:
        found.start_scheduler(host=network.hosts["scheduler"], prefix=network.inside("scheduler"))
        for name in ("worker-1", "worker-2"):
            found.start_worker(name, "--host", network.hosts[name], prefix=network.inside(name))
        yield found
    finally:
        found.stop()


def settings(hosts: RealCluster) -> dict[str, Any]:
    tls = {f"tls_{name}": path for name, path in hosts.tls.items()}
    return {"scheduler": hosts.address, "min_workers": 2, "worker_timeout": 120, **tls}


def test_paths_of_this_machine_are_refused_for_workers_on_other_hosts(
    log: Path, hosts: RealCluster, tmp_path: Path
) -> None:
    with remote_client(ClusterSettings(**settings(hosts))) as client:
        assert not clusters.shares_disk(client)
    job = Job.from_dict(job_tables(log, tmp_path, cluster=settings(hosts)))
    with pytest.raises(SettingsError, match=r"output\.directory = .* is a path of this machine"):
        submit(job)


@pytest.mark.slow
def test_a_host_that_is_cut_off_in_mid_training_changes_nothing(
    log: Path, network: Network, hosts: RealCluster, client: Client, tmp_path: Path
) -> None:
    training = {"n_epochs": 6, "averages_per_epoch": 2}
    expected = jobs.train(job_tables(log, tmp_path / "here", training=training), client).parameters_sha256
    cut: list[int] = []

    def cut_a_link(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and not cut:
            cut.append(event["epoch"])
            network.cut("worker-2")

    tables = job_tables(log, tmp_path / "hosts", training=training, cluster=settings(hosts))
    tables["cluster"]["cache"] = "cache"
    result = jobs.train(tables, on_event=cut_a_link)
    assert cut == [1]
    assert result.parameters_sha256 == expected
    wait_until(lambda: "worker-2" in hosts.log("scheduler"), hosts)
