"""What a cluster of other people's making may lack: workers, dfm, our versions; and what it may do: grow and shrink."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from distributed import Client, LocalCluster

import dfm
from dfm import jobs
from dfm.distributed.cluster import admission, connect, lost_workers, remote, upload, versions
from dfm.distributed.cluster.remote import install, workers_of
from dfm.errors import ClusterError, SettingsError
from dfm.settings.tables import ClusterSettings
from dfm.version import DISTRIBUTION
from tests.support.real_cluster import DASK, real_cluster, wait_until
from tests.support.real_processes import PATIENCE, Cluster
from tests.support.small_jobs import in_process_client, job_tables

SAME = {"python": "3.12", "dfm": "1", "dask": "2", "distributed": "2", "numba": "3", "numpy": "4", "pyarrow": "5"}


# --- versions -------------------------------------------------------------------------------------------


def test_the_same_versions_are_no_mismatch() -> None:
    assert versions.mismatches({"client": SAME, "scheduler": SAME, "worker a": SAME}) == []


def test_dfm_is_asked_for_by_the_name_that_it_is_installed_under(client: Client) -> None:
    assert admission.ASKED_FOR[0] == DISTRIBUTION
    answer = client.get_versions(check=False, packages=admission.ASKED_FOR)
    told = [answer["client"], answer["scheduler"], *answer["workers"].values()]
    assert {admission.picked(place["packages"])["dfm"] for place in told} == {dfm.__version__}


def test_a_mismatch_names_the_package_its_versions_and_who_has_which() -> None:
    old = {**SAME, "numba": "2.9"}
    found = {"client": SAME, "scheduler": {**SAME, "dfm": None}, "worker a": old, "worker b": old, "worker c": old}
    assert versions.mismatches(found) == [
        "dfm 1 on client and worker a and 2 more workers, missing on scheduler",
        "numba 3 on client and scheduler, 2.9 on worker a and 2 more workers",
    ]


@pytest.fixture
def other_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client whose one worker says that it has another numba."""
    with in_process_client(1) as client:
        ask: Any = client.get_versions

        async def answer(**arguments: Any) -> Any:
            found = await ask(**arguments)
            for worker in found["workers"].values():
                worker["packages"] = {**worker["packages"], "numba": "0.1"}
            return found

        monkeypatch.setattr(client, "get_versions", answer)
        yield client


def test_a_job_does_not_begin_on_other_versions_unless_told_to(
    log: Path, other_worker: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    with pytest.raises(ClusterError, match=r"numba .* on client and scheduler, 0\.1 on worker .* install the same"):
        jobs.train(job_tables(log, tmp_path), other_worker, on_event=lambda event: events.append(event["event"]))
    assert events == ["plan"]
    tables = job_tables(log, tmp_path, cluster={"version_mismatch": "warn"})
    assert jobs.train(tables, other_worker).history
    assert "0.1 on worker" in caplog.text


def test_a_frozen_worker_is_named_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path / "cluster")
    try:
        frozen, _ = cluster.add_worker(), cluster.add_worker()
        with cluster.client(2) as client:
            (address,) = [place for place, pid in client.run(os.getpid).items() if pid == frozen.pid]
            frozen.send_signal(signal.SIGSTOP)
            with monkeypatch.context() as short:
                short.setattr(versions, "_PATIENCE", 2.0)
                with pytest.raises(ClusterError, match=rf"^worker {address} did not tell which versions are there"):
                    versions.check_versions(client, ClusterSettings(worker_timeout=1.0))
                threading.Timer(3.0, frozen.send_signal, [signal.SIGCONT]).start()
                versions.check_versions(client, ClusterSettings())  # it answers the second time
            versions.check_versions(client, ClusterSettings())
    finally:
        frozen.send_signal(signal.SIGCONT)
        cluster.close()


OTHER_NUMBA = """
import distributed.versions, runpy, sys
told = distributed.versions._version_cached
distributed.versions._version_cached = lambda name: "0.1" if name == "numba" else told(name)
sys.argv[0] = "dask"
runpy.run_module("dask", run_name="__main__", alter_sys=True)
"""


@pytest.mark.patient
def test_a_worker_that_joins_with_other_versions_gets_no_work_and_is_named(
    log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker is a process whose numba, so it says, is another one; it joins after the first epoch."""
    (tmp_path / "other_numba.py").write_text(OTHER_NUMBA)
    with real_cluster(tmp_path / "cluster", 1) as real, Client(real.address, set_as_default=False) as client:

        def workers() -> dict[str, Any]:
            return {worker["name"]: worker for worker in remote.workers_of(client).values()}

        def join(event: dict[str, Any]) -> None:
            if event["event"] == "epoch" and event["epoch"] == 1:
                real.dask = (sys.executable, str(tmp_path / "other_numba.py"))
                real.start_worker("other", "--no-nanny")  # whose process would be a fresh one
                wait_until(lambda: "0.1 on worker" in caplog.text, real)
                real.dask = DASK
                real.start_worker("same")
                wait_until(lambda: workers().get("same", {}).get("status") == "running", real)
                # The one worker that could go on is ended: the work goes to the one that fits.
                real.processes["worker-0"].kill()

        training = {"n_epochs": 4, "averages_per_epoch": 2}
        here = {"scheduler": real.address, "worker_timeout": 120}
        result = jobs.train(job_tables(log, tmp_path, cluster=here, training=training), on_event=join)
        assert len(result.history) == 4
        assert "joined with other versions: numba" in caplog.text
        assert "it gets no work while this job runs; start it with the same versions" in caplog.text
        with versions.by_value(sys.modules[__name__]):
            happened_to = dict(client.run(stimuli).values())
            plugins = client.run_on_scheduler(plugins_of)
        assert "ComputeTaskEvent" not in happened_to["other"]
        assert "ComputeTaskEvent" in happened_to["same"]
        # The job is over: whom it did not want may work for others.
        assert workers()["other"]["status"] == "running"
        assert not [name for name in plugins if "newcomers" in name]


@pytest.mark.parametrize("mode", ["error", "warn"])
def test_a_newcomer_is_let_in_at_once_under_warn_and_else_when_its_client_is_lost(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = versions.get_versions(packages=admission.ASKED_FOR)
    other = {**own, "packages": {**own["packages"], "numba": "0.1"}}
    monkeypatch.setattr(versions, "get_versions", lambda **_: other)
    settings = ClusterSettings(version_mismatch=mode)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
        ) as growing,
        Client(growing, set_as_default=False) as watching,
        contextlib.ExitStack() as stack,
    ):
        driver = stack.enter_context(Client(growing, set_as_default=False))
        stack.enter_context(versions._asking_newcomers(driver, settings))
        growing.scale(2)
        wait_until(lambda: "joined with other versions" in caplog.text, seconds=30)
        assert ("it is tried" in caplog.text) is (mode == "warn")

        def statuses() -> list[str]:
            return sorted(worker["status"] for worker in remote.workers_of(watching).values())

        wait_until(lambda: statuses() == (["running"] * 2 if mode == "warn" else ["paused", "running"]), seconds=30)
        driver.close()  # as when its process is killed: it takes no leave of the scheduler's plugin
        wait_until(lambda: statuses() == ["running"] * 2, seconds=30)
        assert watching.submit(sum, [1, 2]).result() == 3


def stimuli(dask_worker: Any) -> tuple[str, set[str]]:
    """A worker's name, and the kinds of all that has happened to it."""
    return dask_worker.name, {type(event).__name__ for event in dask_worker.state.stimulus_log}


def plugins_of(dask_scheduler: Any) -> list[str]:
    return [*dask_scheduler.plugins]


# --- dfm is carried -------------------------------------------------------------------------------------


BARE = """
import importlib.metadata, runpy, site, sys
packages = {packages!r}
sys.path.append(packages)
sys.argv[0] = "dask"
runpy.run_module("dask", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def bare_dask(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command dask of a Python that has everything but dfm: its packages are linked into a folder of their own."""
    folder = tmp_path_factory.mktemp("bare")
    packages = folder / "packages"
    packages.mkdir()
    own = ("dfm", "dask_fm", "_dfm", "__editable__", "_editable")
    for place in {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(own) and entry.suffix != ".pth":
                (packages / entry.name).symlink_to(entry)
    (folder / "bare_dask.py").write_text(BARE.format(packages=str(packages)))
    return (sys.executable, "-S", "-E", str(folder / "bare_dask.py"))


@pytest.mark.patient
def test_dfm_reaches_workers_that_lack_it_when_it_may(log: Path, bare_dask: tuple[str, ...], tmp_path: Path) -> None:
    environment = {"PYTHONPATH": "", "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", f"{tmp_path}/numba")}
    with real_cluster(tmp_path / "cluster", 1, dask=bare_dask, environment=environment) as bare:
        here = {"scheduler": bare.address, "worker_timeout": 120}
        with pytest.raises(ClusterError, match=r"missing on scheduler and worker .* set cluster\.install_dfm = true"):
            jobs.train(job_tables(log, tmp_path, cluster=here))
        allowed = job_tables(log, tmp_path, cluster={**here, "install_dfm": True})
        result = jobs.train(allowed)
        assert result.model.parameters_sha256() == result.parameters_sha256
        bare.start_worker("late")  # a worker that joins afterwards has it too
        with Client(bare.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
            found = client.run(lambda: __import__("dfm").__file__)
        assert len(found) == 2
        assert all("dfm-wheel-" in path for path in found.values())
        assert jobs.train(allowed).parameters_sha256 == result.parameters_sha256


def test_the_wheel_can_be_installed_and_imported(tmp_path: Path) -> None:
    import importlib.metadata
    import zipfile

    (tmp_path / "dfm.whl").write_bytes(versions.build_wheel())
    with zipfile.ZipFile(tmp_path / "dfm.whl") as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "installed")
    assert {"dfm/__init__.py", "dfm/cli/app.py", "dfm/kernels/simd.py"} <= {*names}
    found = {each.metadata["Name"]: each for each in importlib.metadata.distributions(path=[f"{tmp_path}/installed"])}
    assert found["dask-fm"].version == dfm.__version__
    assert any(line.startswith("dask") for line in found["dask-fm"].requires or [])
    assert versions.build_wheel() == versions.build_wheel()


def test_a_process_that_has_dfm_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.path)
    upload.unpack(b"no wheel", "digest", dfm.__version__)
    assert sys.path == before
    monkeypatch.setattr(upload, "_FOLDERS", {"another digest": "/there"})
    with pytest.raises(RuntimeError, match="another build of dfm was sent here before; restart the cluster"):
        upload.unpack(b"no wheel", "digest", dfm.__version__)


# --- what they are told to do ---------------------------------------------------------------------------


def test_the_settings_for_other_clusters_are_those_of_local_workers() -> None:
    """But those of how local workers start, and of processes of one thread; and what follows from the job there."""
    file = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "distributed.yaml").read_text())
    starting = ("distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX", "distributed.deploy.")
    patience = f"{ClusterSettings().worker_timeout:.0f}s"
    expected = {
        **{name: value for name, value in connect._CONFIG.items() if not name.startswith(starting)},
        "distributed.scheduler.no-workers-timeout": patience,
        "distributed.scheduler.worker-ttl": patience,
        "distributed.worker.profile.enabled": False,
    }
    assert {name: dask.config.get(name, config=file) for name in expected} == expected
    assert len(expected) == sum(not line.strip().endswith(":") for line in yaml.dump(file).splitlines())


# --- who comes, and when --------------------------------------------------------------------------------


def test_too_few_workers_in_time_are_counted(log: Path, client: Client) -> None:
    settings = ClusterSettings(scheduler=client.scheduler.address, min_workers=3, worker_timeout=0.3)
    with pytest.raises(ClusterError, match=r"had 1 of 3 workers within cluster\.worker_timeout = 0\.3 s; start"):
        connect.connect(settings).__enter__()


def make_cluster(n_workers: int = 1, adaptive: bool = False) -> LocalCluster:
    """A factory as users write them."""
    made = LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=False, dashboard_address=":0")
    if adaptive:
        made.adapt(minimum=0, maximum=2, interval="100ms", wait_count=30)
    return made


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "clusters_of_ours", sys.modules[__name__])
    return "clusters_of_ours:make_cluster"


def test_a_job_runs_on_the_cluster_of_a_factory(log: Path, factory: str, client: Client, tmp_path: Path) -> None:
    table = {"factory": factory, "factory_options": {"n_workers": 2}, "min_workers": 2}
    result = jobs.train(job_tables(log, tmp_path, cluster=table))
    assert result.parameters_sha256 == jobs.train(job_tables(log, tmp_path), client).parameters_sha256


def test_an_adaptive_cluster_without_workers_is_woken(factory: str) -> None:
    settings = ClusterSettings(factory=factory, factory_options={"n_workers": 0, "adaptive": True})
    with connect.connect(settings) as client:
        assert client.submit(sum, [1, 2]).result() == 3


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:f", "cannot be imported"),
        ("os:no_such_function", "cannot be imported"),
        ("lacking_module:f", r"cannot be imported \(No module named 'nowhere'\)"),
        ("os:sep", "is a str, and no function; write module:function"),
        ("contextlib:nullcontext", "gave a nullcontext; it must give a Dask cluster or a client"),
        ("os:getcwd", r"gave a str; it must give a Dask cluster or a client \(the address of a scheduler is"),
        ("gc:enable", "gave a NoneType; it must give a Dask cluster or a client"),
        ("operator:neg", r"cannot be called with cluster\.factory_options \(none\): .*give the options that it takes"),
    ],
)
def test_a_factory_that_gives_no_cluster_is_named(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_module.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=told):
        connect.connect(ClusterSettings(factory=name)).__enter__()


def test_a_factory_that_does_not_take_its_options_is_told_by_its_name(factory: str) -> None:
    settings = ClusterSettings(factory=factory, factory_options={"n_machines": 2})
    with pytest.raises(SettingsError, match=r"with cluster\.factory_options \(n_machines\): .*unexpected keyword"):
        connect.connect(settings).__enter__()


FAILING = """
def in_its_body(): return len(None)
class Cluster:
    def __enter__(self): raise RuntimeError("no machines")
    def __exit__(self, *_): pass
    def get_client(self): raise OSError("no way there")
class WithoutClient(Cluster):
    def __enter__(self): return self
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "failing_module:in_its_body",
            "gave no cluster: TypeError: .*; see to what it needs, and run the same command",
        ),
        ("failing_module:Cluster", "gave no cluster: RuntimeError: no machines"),
        ("failing_module:WithoutClient", "gave no cluster: OSError: no way there"),
        ("broken_module:f", "failed while its module was imported: AttributeError: its own fault"),
    ],
)
def test_a_factory_that_fails_is_trouble_of_the_cluster_and_worth_another_try(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_module.py").write_text(FAILING)
    (tmp_path / "broken_module.py").write_text("raise AttributeError('its own fault')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ClusterError, match=told):
        connect.connect(ClusterSettings(factory=name)).__enter__()


def test_a_cluster_that_grows_and_shrinks_in_mid_run_changes_nothing(log: Path, client: Client, tmp_path: Path) -> None:
    training = {"n_epochs": 6, "averages_per_epoch": 2}
    expected = jobs.train(job_tables(log, tmp_path, training=training), client).parameters_sha256
    sizes = {1: 3, 3: 1, 4: 2}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as changing,
        Client(changing, set_as_default=False) as own,
    ):

        def rescale(event: dict[str, Any]) -> None:
            if event["event"] == "epoch" and (size := sizes.get(event["epoch"])):
                changing.scale(size)
                if size > 1:
                    own.wait_for_workers(size, timeout=60)

        result = jobs.train(job_tables(log, tmp_path / "changing", training=training), own, on_event=rescale)
    assert result.parameters_sha256 == expected


def test_the_scheduler_comes_from_the_job_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.scheduler_address(ClusterSettings()) == ""
    with dask.config.set({"scheduler-address": "tcp://there:8786"}):
        assert remote.scheduler_address(ClusterSettings()) == "tcp://there:8786"
        assert remote.scheduler_address(ClusterSettings(scheduler="tcp://here:1")) == "tcp://here:1"
        assert not remote.is_remote(ClusterSettings(scheduler="local"))
        assert remote.is_remote(ClusterSettings(factory="a:b"))
        assert remote.scheduler_address(ClusterSettings(factory="a:b")) == ""


def test_two_clusters_and_half_a_certificate_are_refused() -> None:
    with pytest.raises(SettingsError, match="name two clusters; leave one of them out"):
        ClusterSettings(scheduler="tcp://x:1", factory="a:b")
    with pytest.raises(SettingsError, match=r"cluster\.tls_ca needs its companions"):
        ClusterSettings(tls_ca="ca.pem")
    with pytest.raises(SettingsError, match="module:function"):
        ClusterSettings(factory="not a name")


def test_a_certificate_that_is_not_there_is_named_by_who_names_it(tmp_path: Path) -> None:
    (tmp_path / "there.pem").touch()
    there, typo = str(tmp_path / "there.pem"), str(tmp_path / "typo.pem")
    tls = {"tls_ca": there, "tls_cert": typo, "tls_key": there}
    with (
        pytest.raises(SettingsError, match=rf"cluster\.tls_cert = '{typo}' is not there"),
        connect.connect(ClusterSettings(scheduler="tls://127.0.0.1:9", **tls)),
    ):
        pass
    own = {"distributed.comm.tls.ca-file": typo, "distributed.comm.tls.client.cert": "-----BEGIN\nCERTIFICATE-----\n"}
    with (
        dask.config.set(own),
        pytest.raises(SettingsError, match=rf"distributed\.comm\.tls\.ca-file = '{typo}' is not there"),
        connect.connect(ClusterSettings(scheduler="tls://127.0.0.1:9")),
    ):
        pass


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", ""])
def test_who_named_a_scheduler_that_is_not_there_is_told(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"check the address, or " if scheduler else r"check the address, which DASK_SCHEDULER_ADDRESS or"
    with (
        dask.config.set({"scheduler-address": "tcp://127.0.0.1:9"}),
        pytest.raises(ClusterError, match=rf"{told}.*\(--scheduler local\)"),
        connect.connect(ClusterSettings(scheduler=scheduler, worker_timeout=1)),
    ):
        pass


def test_a_scheduler_that_freezes_is_not_waited_for(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    try:
        with Client(cluster.address, set_as_default=False, timeout=PATIENCE) as client:
            install(client, lost_workers.ReleaseFromLostWorkers())
            assert workers_of(client) == {}
            cluster.scheduler.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            told = "has not answered for 1 s; see whether its process is stopped"
            with pytest.raises(ClusterError, match=told):
                install(client, lost_workers.ReleaseFromLostWorkers(), 1.0)
            with pytest.raises(ClusterError, match=told):
                workers_of(client, 1.0)
            assert time.monotonic() - stopped < 15
            cluster.scheduler.send_signal(signal.SIGCONT)
            assert workers_of(client) == {}
    finally:
        cluster.scheduler.send_signal(signal.SIGCONT)
        cluster.close()
