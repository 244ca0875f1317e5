"""The submit client against a server that answers like the Kubernetes API: created once, followed to the truth."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import re
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from dfm.cli import kubernetes as cli_kubernetes
from dfm.cli.app import cli
from dfm.errors import ClusterError, SettingsError
from dfm.kubernetes import api as api_module
from dfm.kubernetes import follow, sizing, submit, upkeep
from dfm.kubernetes.api import Api, Away
from dfm.kubernetes.manifest import Manifest, Submission
from dfm.launch import supervisor
from dfm.runs import lifecycle, patience
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.settings.job import Job
from dfm.storage import files
from tests.support.api_server import ApiServer, Fault, _Handler, api_server

pytest.importorskip("kubernetes")
SIZES = sizing.Sizing(2, 1, 4 << 30, 2 << 30, 1 << 30, 20 << 30)
JOBS = "/apis/kubernetes.dask.org/v1/namespaces/team/daskjobs"
PODS = "/api/v1/namespaces/team/pods"
MANAGED = ("app.kubernetes.io/managed-by", "dfm")
EVENTS = "/api/v1/namespaces/team/events"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.01)
    for name in ("PATIENCE", "LAST_WORD"):
        monkeypatch.setattr(follow, name, 0.3)
    monkeypatch.setattr(follow, "PAUSE", 0.05)
    monkeypatch.setattr(submit, "PAUSE", 0.05)
    with api_server(tmp_path / "kubeconfig") as store:
        yield store


@pytest.fixture
def api(server: ApiServer) -> Api:
    return Api()


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    """A job whose output is in a store that this process can read."""
    tables = {"data": {"train": "s3://in/x"}, "output": {"directory": f"memory://k8s/{tmp_path.name}"}}
    return Submission("clicks-1", "", Job.from_dict(tables), SIZES, "run-1")


def driver_pod(phase: str, **status: Any) -> Manifest:
    labels = {"dask.org/cluster-name": "clicks-1", "dask.org/component": "job-runner"}
    return {
        "kind": "Pod",
        "metadata": {"name": "clicks-1-runner", "labels": labels},
        "status": {"phase": phase, **status},
    }


def finish(submission: Submission, run_id: str = "run-1") -> None:
    """Leave what a driver leaves that succeeded."""
    job = submission.job
    model = files.join(job.output.directory, "model")
    manifest = {
        "format": 1, "files": {"parameters": {"name": "p"}}, "metadata": {"job_fingerprint": job.fingerprint()}
    }  # fmt: skip
    with RunLog(job, run_id) as log:
        log.on_event({"event": "epoch", "epoch": 1, "log_loss": 0.5, "train_log_loss": 0.6, "auc": 0.7,
                      "rows_per_second": 1.0, "seconds": 1.0, "averaging_seconds": 0.1})  # fmt: skip
        files.write_bytes(files.join(model, "p"), b"parameters")
        files.write_bytes(files.join(model, "model.json"), json.dumps(manifest).encode())
        log.on_event(
            {"event": "done", "model": model, "parameters_sha256": "x", "validation": {}, "rows": {}, "best_epoch": 1,
             "interrupted": False}
        )  # fmt: skip


# --- create ---------------------------------------------------------------------------------------------


def test_all_objects_are_created_strictly_and_belong_to_the_job(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    done = submit.submit(api, submission)
    assert (done.name, done.namespace, done.run_id) == ("clicks-1", "team", "run-1")
    assert server.kinds() == ["ConfigMap", "DaskJob", "PodDisruptionBudget"]
    posts = [query for method, _, query in server.requests if method == "POST"]
    assert posts == [{"fieldValidation": "Strict"}] * 3
    assert [path.rsplit("/", 1)[-1] for method, path, _ in server.requests if method != "GET"] == [
        "daskjobs", "configmaps", "poddisruptionbudgets",
    ]  # fmt: skip
    uid = server.objects[f"{JOBS}/clicks-1"]["metadata"]["uid"]
    owners = [
        body["metadata"]["ownerReferences"][0]["uid"] for body in server.objects.values() if body["kind"] != "DaskJob"
    ]
    assert owners == [uid, uid]
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.run_id, record.state, record.scheduler) == ("run-1", "submitted", "DaskJob team/clicks-1")
    assert record.start_seconds == submission.job.kubernetes.start_timeout + lifecycle.START_SECONDS


def test_a_refusal_names_the_missing_right_and_leaves_nothing_behind(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    server.faults.append(Fault("POST", "/daskjobs", 403))
    with pytest.raises(ClusterError, match=r"DaskJob \(403\): told so .* ask for the Role dfm-submitter"):
        submit.submit(api, submission)
    assert server.kinds() == []


@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_refused_submission_leaves_the_run_that_finished_before_it_alone(
    server: ApiServer, api: Api, submission: Submission, status: int
) -> None:
    finish(submission, "run-0")
    output = submission.job.output.directory
    record, events = runs.read_run(output), runs.read_events(output)
    server.faults.append(Fault("POST", "/daskjobs", status))
    with pytest.raises(ClusterError):
        submit.submit(api, submission)
    assert server.kinds() == []
    assert runs.read_run(output) == record
    assert runs.read_events(output) == events


def test_a_driver_that_is_quicker_than_its_submission_keeps_its_record(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    def create(body: Manifest) -> None:
        if body["kind"] == "DaskJob":
            finish(submission)

    server.on_create = create
    submit.submit(api, submission)
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.run_id, record.state) == ("run-1", "finished")


def test_a_cluster_without_the_operator_is_told_what_to_install(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    server.faults.append(Fault("POST", "/daskjobs", 404))
    with pytest.raises(ClusterError, match="install the Dask operator"):
        submit.submit(api, submission)


def test_a_field_that_the_cluster_does_not_know_is_refused(server: ApiServer, api: Api, submission: Submission) -> None:
    server.faults.append(Fault("POST", "/daskjobs", 422))
    with pytest.raises(ClusterError, match="update the CRDs"):
        submit.submit(api, submission)


def test_what_is_none_of_the_operators_has_another_remedy_than_its_update(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    server.faults.append(Fault("POST", "/configmaps", 422, message="Too long: may not be more than 1048576 bytes"))
    with pytest.raises(ClusterError, match="Too long") as refused:
        submit.submit(api, submission)
    assert "CRD" not in str(refused.value)


def test_a_name_that_is_taken_is_not_taken_over(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    other = dataclasses.replace(submission.job.output, directory=f"{submission.job.output.directory}-2")
    second = dataclasses.replace(submission, run_id="run-2", job=dataclasses.replace(submission.job, output=other))
    with pytest.raises(SettingsError, match="there is a DaskJob 'clicks-1' in namespace 'team' already"):
        submit.submit(api, second)
    assert runs.read_run(other.directory) is None
    assert server.kinds() == ["ConfigMap", "DaskJob", "PodDisruptionBudget"]


@pytest.mark.parametrize("what", ["drop", 503])
@pytest.mark.parametrize("after", [False, True], ids=["before it took effect", "after it took effect"])
def test_an_answer_that_is_lost_does_not_make_two_jobs(
    server: ApiServer, api: Api, submission: Submission, what: int | str, after: bool
) -> None:
    for kind in ("daskjobs", "configmaps", "poddisruptionbudgets"):
        server.faults.append(Fault("POST", f"/{kind}", what, after))
    submit.submit(api, submission)
    assert server.kinds() == ["ConfigMap", "DaskJob", "PodDisruptionBudget"]
    # What the delivered Role allows: nothing that was made is read again but the DaskJob.
    assert {path for method, path, _ in server.requests if method != "POST"} <= {f"{JOBS}/clicks-1"}


def test_a_server_that_stays_away_is_named(
    server: ApiServer, api: Api, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Away, "sat_out", 0.1)
    monkeypatch.setattr(patience, "PAUSE", 0.1)
    server.faults += [Fault("POST", "/daskjobs", "drop")] * 100
    with pytest.raises(ClusterError, match=r"the Kubernetes API at http://127\.0\.0\.1:\d+ does not answer"):
        submit.submit(api, submission)


def test_no_kubeconfig_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="no Kubernetes cluster is configured"):
        Api()


def assert_reached_by_pods(told: str, **tables: dict[str, object]) -> None:
    """Pods that mount a volume at /data find what a job names; or it is refused so."""
    sizes = {"workers": 1, "worker_memory": "1GiB", "driver_memory": "1GiB", "scratch": "1GiB"}
    kubernetes = {**sizes, "volumes": [{"mount": "/data", "claim": "logs", "read_only": True}]}
    known = {"data": {"train": "s3://in"}, "output": {"directory": "s3://out"}, "kubernetes": kubernetes}
    job = Job.from_dict({**known, **tables})
    if not told:
        assert (submit.prepare(job).job.data, submit.prepare(job).job.training) == (job.data, job.training)
        return
    with pytest.raises(SettingsError, match=re.escape(told)):
        submit.prepare(job)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("delta://clicks@v3", "is a path of this machine"),
        ("delta+file:///elsewhere/clicks", "lies below no volume"),
        ("delta+file:///data/clicks", ""),
        ("delta+s3://bucket/clicks@v3", ""),
        ("iceberg://prod/ads.clicks", ""),
    ],
)
def test_the_folder_of_a_table_has_to_be_where_pods_find_it(url: str, told: str) -> None:
    assert_reached_by_pods(told, data={"train": url})


@pytest.mark.parametrize(
    ("warm_start", "told"),
    [
        ("results/model", "training.warm_start = 'results/model' is a path of this machine"),
        ("file:///elsewhere/model", "training.warm_start = 'file:///elsewhere/model' lies below no volume"),
        ("file:///data/model", ""),
        ("s3://models/ctr", ""),
        ("", ""),
    ],
)
def test_a_model_to_go_on_from_has_to_be_where_pods_find_it(warm_start: str, told: str) -> None:
    assert_reached_by_pods(told, training={"warm_start": warm_start})


def test_sizes_are_planned_without_a_look_at_places_that_only_pods_reach(tmp_path: Path) -> None:
    """What the rows decide is checked: the driver would refuse it."""
    url = f"memory://{tmp_path.name}"
    rows = io.BytesIO()
    pq.write_table(pa.table({"a": ["x", "y"] * 50, "label": [0, 1] * 50}), rows)
    files.write_bytes(f"{url}/log.parquet", rows.getvalue())
    tables = {
        "data": {"train": f"{url}/log.parquet"},
        "schema": {"label": "label", "categorical": ["a"]},
        "training": {"n_replicas": 2, "warm_start": "file:///data/model"},
        "output": {"directory": f"{url}/out"},
        "kubernetes": {"volumes": [{"mount": "/data", "claim": "models"}]},
    }
    assert submit.prepare(Job.from_dict(tables)).sizing.workers == 1
    cold = Job.from_dict({**tables, "training": {"n_replicas": 2}})
    warm, full = submit._plan(Job.from_dict(tables)), 4 * 2**20  # a number for each place of the table, at least
    assert submit._plan(cold)["parameter_bytes_at_most"] < full < warm["parameter_bytes_at_most"]
    with pytest.raises(SettingsError, match=r'model\.choose = "best" needs rows to validate on'):
        submit.prepare(Job.from_dict({**tables, "model": {"choose": "best"}}))


def test_paths_of_this_machine_are_refused(tmp_path: Path) -> None:
    job = Job.from_dict({"data": {"train": "/data/x"}, "output": {"directory": "s3://out"}})
    with pytest.raises(SettingsError, match=r"data\.train = '/data/x' is a path of this machine"):
        submit.prepare(job)


# --- credentials ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Login:
    """A login by a token's file, and the tokens that the server accepts and was shown."""

    kubeconfig: Path
    token: Path
    accepted: str = "first"
    shown: list[str] = dataclasses.field(default_factory=list)

    def rewrite(self, change: Callable[[Manifest], None]) -> None:
        config = json.loads(self.kubeconfig.read_text())
        change(config)
        self.kubeconfig.write_text(json.dumps(config))


@pytest.fixture
def login(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Login:
    """The server accepts one token only, which the kubeconfig names by its file."""
    found, answer = Login(tmp_path / "kubeconfig", tmp_path / "token"), _Handler._answer
    found.token.write_text(found.accepted)
    found.rewrite(lambda config: config["users"][0].update(user={"tokenFile": str(found.token)}))

    def checked(self: _Handler, *request: Any) -> tuple[int, Manifest | None]:
        found.shown.append(str(self.headers["Authorization"]).removeprefix("Bearer "))
        return answer(self, *request) if found.shown[-1] == found.accepted else (401, self._status(401, "Unauthorized"))

    monkeypatch.setattr(_Handler, "_answer", checked)
    return found


def test_a_token_that_was_replaced_in_its_file_is_read_again(login: Login, api: Api) -> None:
    api.list("Pod")
    login.accepted = "second"
    login.token.write_text("second")
    assert api.list("Pod")[0] == []
    assert list(api.watch("Pod", "", "1", 1)) == []
    assert login.shown == ["first", "first", "second", "second"]
    login.accepted = "third"
    login.token.write_text("third")
    assert list(api.watch("Pod", "", "1", 1)) == []
    assert login.shown[4:] == ["second", "third"]


def test_a_token_that_is_not_accepted_though_read_again_is_told(login: Login, api: Api) -> None:
    login.accepted = "another"
    with pytest.raises(ClusterError, match=r"Pod \(401\): Unauthorized; log in again"):
        api.list("Pod")
    assert login.shown == ["first", "first"]


def test_a_login_that_is_read_again_is_that_of_the_context_chosen_first(login: Login, api: Api) -> None:
    def switch(config: Manifest) -> None:
        config["clusters"].append({"name": "other", "cluster": {"server": "http://127.0.0.1:1"}})
        config["contexts"].append({"name": "other", "context": {"cluster": "other", "user": "me"}})
        config["current-context"] = "other"

    login.rewrite(switch)
    login.accepted = "second"
    login.token.write_text("second")
    api.list("Pod")
    assert login.shown == ["first", "second"]


def test_a_kubeconfig_that_cannot_be_read_again_leaves_the_refusal_as_the_error(login: Login, api: Api) -> None:
    login.kubeconfig.write_text("{")
    login.accepted = "second"
    with pytest.raises(ClusterError, match="log in again"):
        api.list("Pod")
    login.accepted = "first"
    assert api.list("Pod")[0] == []


# --- follow ---------------------------------------------------------------------------------------------


def test_success_is_what_storage_proves_though_the_job_stays_running(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Running"}
    server.put(PODS, driver_pod("Running"))
    finish(submission)
    events: list[Manifest] = []
    found, _ = follow.follow(api, "clicks-1", None, events.append)
    assert found.succeeded
    assert [event["event"] for event in events] == ["kubernetes", "epoch", "done", "ended"]


def test_a_job_called_successful_without_a_model_did_not_succeed(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Successful"}
    server.put(PODS, driver_pod("Succeeded"))
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert not found.succeeded
    assert found.state == "lost"
    assert found.exit_code == 4


def test_the_record_of_another_run_proves_nothing(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    finish(submission, "run-0")
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert found.state == "lost"


def test_a_driver_killed_for_memory_is_explained(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    server.put(PODS, driver_pod("Failed", containerStatuses=[{"name": "driver", "state": ended}]))
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert "exit code 137 (OOMKilled); give it more memory" in found.reason
    assert "Submit the job again: it resumes" in found.reason


def test_a_driver_pod_that_was_deleted_ends_the_wait(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Running"}
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert "DaskJob clicks-1 (Running) has no driver's pod" in found.reason


def test_following_survives_disconnects_and_versions_that_are_gone(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    trouble = [Fault("GET", "?watch", 410), Fault("GET", "?watch", "drop"), Fault("GET", "/pods", "drop")]
    server.faults += [*trouble, Fault("GET", "/clicks-1", 503), Fault("GET", "/clicks-1", "drop")]
    asked: list[Manifest] = []

    def on_event(event: Manifest) -> None:
        asked.append(event)

    timer = threading.Timer(3.5, finish, [submission])
    timer.start()
    found, _ = follow.follow(api, "clicks-1", None, on_event)
    timer.join()
    assert found.succeeded
    assert server.faults == []
    assert [event["event"] for event in asked] == ["kubernetes", "epoch", "done", "ended"]


def test_an_attempt_that_will_be_repeated_is_no_end(server: ApiServer, api: Api, submission: Submission) -> None:
    """The scheduler is lost; the driver's supervisor starts another attempt, which succeeds."""
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    with pytest.raises(ClusterError, match="the scheduler is gone"), RunLog(submission.job, "run-1", "", 4):
        raise ClusterError("the scheduler is gone")
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.state, record.is_over, record.error and record.error["exit_code"]) == ("retrying", False, 4)
    asked = len(server.requests)
    timer = threading.Timer(1.5, finish, [submission])
    timer.start()
    events: list[Manifest] = []
    found, _ = follow.follow(api, "clicks-1", None, events.append)
    timer.join()
    assert found.succeeded
    assert [event["event"] for event in events] == ["kubernetes", "retrying", "epoch", "done", "ended"]
    assert [method for method, _, _ in server.requests[asked:] if method != "GET"] == []


def test_a_followed_job_is_left_to_the_operator_until_it_has_noted_the_end(
    server: ApiServer, submission: Submission, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.submit(api, submission)
    clusters = JOBS.replace("daskjobs", "daskclusters")
    server.put(clusters, {"kind": "DaskCluster", "metadata": {"name": "clicks-1"}})
    server.put(PODS, driver_pod("Running"))
    finish(submission)

    def operate() -> None:
        server.put(PODS, driver_pod("Succeeded"))
        time.sleep(0.5)
        del server.objects[f"{clusters}/clicks-1"]  # a KeyError where the follower was quicker
        server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Successful"}

    with ThreadPoolExecutor(1) as pool:
        operator = pool.submit(operate)
        assert cli_kubernetes.followed("clicks-1", "team", "", {}, True) == 0
        assert operator.done()
        operator.result()
    assert server.objects[f"{JOBS}/clicks-1"]["status"] == {"jobStatus": "Successful"}
    assert "DELETE" not in [method for method, _, _ in server.requests]
    assert capsys.readouterr().err == ""


def test_an_operator_that_does_not_note_the_end_is_told_of(
    server: ApiServer, submission: Submission, api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(follow, "SETTLING", 0.3)
    submit.submit(api, submission)
    server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Running"}
    server.put(PODS, driver_pod("Succeeded"))
    finish(submission)
    assert cli_kubernetes.followed("clicks-1", "team", "", {}, True) == 0
    assert "the operator has not taken note of the end of DaskJob clicks-1 (it says Running)" in capsys.readouterr().err
    assert "DELETE" not in [method for method, _, _ in server.requests]


def test_a_job_whose_driver_was_deleted_goes_with_all_that_it_owns(
    server: ApiServer, submission: Submission, api: Api
) -> None:
    submit.submit(api, submission)
    server.objects[f"{JOBS}/clicks-1"]["status"] = {"jobStatus": "Running"}
    assert cli_kubernetes.followed("clicks-1", "team", "", {}, True) == 4
    assert [path for method, path, _ in server.requests if method == "DELETE"] == [f"{JOBS}/clicks-1"]


OUTAGES = pytest.mark.parametrize("away", ["drop", 503, 401, 403, 404, 429])


@contextlib.contextmanager
def outage(server: ApiServer, away: int | str, then: Callable[[], None]) -> Iterator[None]:
    """The server is away from half a second on, for a second; after another half, something happens."""

    def happen() -> None:
        for seconds, state in ((0.5, away), (1.0, None), (0.5, None)):
            time.sleep(seconds)
            server.away = state
        then()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(happen)
        yield
        done.result()


@OUTAGES
def test_following_sits_out_an_api_server_that_is_away(
    server: ApiServer, api: Api, submission: Submission, away: int | str
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    events: list[Manifest] = []
    with outage(server, away, lambda: finish(submission)):
        found, _ = follow.follow(api, "clicks-1", None, events.append)
    assert found.succeeded
    assert [event["event"] for event in events] == ["kubernetes", "waiting", "epoch", "done", "ended"]


@OUTAGES
def test_waiting_for_a_status_sits_out_an_api_server_that_is_away(
    server: ApiServer, api: Api, submission: Submission, away: int | str, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    with outage(server, away, lambda: finish(submission)):
        assert cli_kubernetes.status("clicks-1", "team", "", {}, True, True) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "finished"


@OUTAGES
def test_following_the_log_sits_out_an_api_server_that_is_away(
    server: ApiServer, api: Api, submission: Submission, away: int | str
) -> None:
    server.put(PODS, driver_pod("Running"))
    server.logs["clicks-1-runner"] = ["2026-11-21T10:00:00.000000001Z before"]

    def go_on() -> None:
        server.logs["clicks-1-runner"].append("2026-11-21T10:00:01.000000001Z after")
        server.put(PODS, driver_pod("Succeeded"))

    told: list[str] = []
    with outage(server, away, go_on):
        submit.driver_log(api, "clicks-1", True, told.append, lambda event: None)
    assert told == ["before", "after"]


def test_a_server_that_stays_away_ends_the_wait_with_its_name(
    server: ApiServer, api: Api, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Away, "sat_out", 0.3)
    server.away = "drop"
    with pytest.raises(ClusterError, match="does not answer"):
        follow.follow(api, "clicks-1", None, lambda event: None)
    server.away = 403
    with pytest.raises(ClusterError, match="ask for the Role"):  # from the first request on: no rights
        follow.follow(api, "clicks-1", None, lambda event: None)


def test_a_watch_tells_changes_and_ends_where_it_cannot_go_on(server: ApiServer, api: Api) -> None:
    server.events = [{"type": "MODIFIED", "object": driver_pod("Running")}, {"type": "ERROR", "object": {"code": 410}}]
    assert [(kind, body["status"]["phase"]) for kind, body in api.watch("Pod", "", "1", 1)] == [("MODIFIED", "Running")]
    server.faults = [Fault("GET", "?watch", 410), Fault("GET", "?watch", "drop"), Fault("GET", "?watch", 403)]
    assert list(api.watch("Pod", "", "1", 1)) == []
    assert list(api.watch("Pod", "", "1", 1)) == []
    with pytest.raises(ClusterError, match=r"Pod \(403\)"):
        list(api.watch("Pod", "", "1", 1))


def test_the_real_wait_lists_and_watches_from_there(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    follow._wait_for_change(api, "clicks-1", pytest.fail)
    assert server.watched == [
        {"watch": "1", "labelSelector": "dask.org/cluster-name=clicks-1", "resourceVersion": str(server.version),
         "timeoutSeconds": "5", "allowWatchBookmarks": "false"}
    ]  # fmt: skip


def test_a_role_that_may_not_watch_is_told_once_and_the_job_is_followed_by_looking(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    server.faults += [Fault("GET", "/pods?watch", 403, message="cannot watch") for _ in range(1000)]
    events: list[Manifest] = []
    timer = threading.Timer(1.5, finish, [submission])
    timer.start()
    found, _ = follow.follow(api, "clicks-1", None, events.append)
    timer.join()
    assert found.succeeded
    assert len(server.faults) < 999, "the watch was refused once only"
    assert [event["event"] for event in events] == ["kubernetes", "waiting", "epoch", "done", "ended"]
    assert "cannot be watched" in events[1]["reason"]
    assert "cannot watch; ask for the Role dfm-submitter" in events[1]["reason"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"reason": "Evicted", "message": "low on disk"}, "pod clicks-1-runner: Evicted: low on disk"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: too little memory"}]},
            "pod clicks-1-runner fits no node: 0/3 nodes: too little memory",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "pod clicks-1-runner waits: ImagePullBackOff: no such image",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        ({"containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}, None),
    ],
)
def test_what_keeps_a_pod_from_running_is_said(status: Manifest, told: str | None) -> None:
    assert follow.problems_of(driver_pod("Pending", **status)) == ([told] if told else [])


@pytest.mark.parametrize(
    ("code", "state", "exit_code"),
    [(0, "finished", 0), (7, "cancelled", 7), (130, "interrupted", 130), (3, "failed", 3), (None, "unknown", 1)],
)
def test_a_run_whose_output_is_in_a_volume_of_the_pods_ended_as_its_driver_says(
    server: ApiServer, api: Api, submission: Submission, code: int | None, state: str, exit_code: int
) -> None:
    output = dataclasses.replace(submission.job.output, directory="file:///data/out")
    submit.submit(api, dataclasses.replace(submission, job=dataclasses.replace(submission.job, output=output)))
    ended = {} if code is None else {"terminated": {"exitCode": code, "reason": "Error"}}
    phase = "Running" if code is None else "Failed" if code else "Succeeded"
    server.put(PODS, driver_pod(phase, containerStatuses=[{"name": "driver", "state": ended}]))
    found = follow.ending_of(follow.state_of(api, "clicks-1"), None)
    assert (found.state, found.exit_code) == (state, exit_code)


# --- logs, cancel ---------------------------------------------------------------------------------------


def test_log_lines_are_told_once_though_the_server_repeats_a_second(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    server.put(PODS, driver_pod("Running"))
    lines = [f"2026-11-21T10:00:0{number // 3}.{number:09d}Z line {number} {'x' * 90}" for number in range(6)]
    server.logs["clicks-1-runner"] = lines[:4]
    server.faults.append(Fault("GET", "/log", "drop"))
    told: list[str] = []

    def line(text: str) -> None:
        told.append(text.split()[1])
        if len(told) == 4:
            server.logs["clicks-1-runner"] = lines
            server.put(PODS, driver_pod("Succeeded"))

    submit.driver_log(api, "clicks-1", True, line, lambda event: None)
    assert told == ["0", "1", "2", "3", "4", "5"]


def test_cancelling_asks_the_driver_first_and_then_deletes_everything(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    with RunLog(submission.job, "run-1") as log:
        log.on_event({"event": "epoch", "epoch": 1})
        state = submit.cancel(api, "clicks-1", patience=0.1)
        names = files.names_in(submission.job.output.directory)
    assert state == "cancelled"
    assert "cancel.json" in names
    assert server.kinds() == []
    with pytest.raises(ClusterError, match="there is no DaskJob 'clicks-1'"):
        submit.cancel(api, "clicks-1")


@pytest.mark.parametrize("driver", ["Pending", "missing"])
def test_a_job_that_has_not_begun_is_cancelled_in_seconds_and_its_record_says_so(
    server: ApiServer, api: Api, submission: Submission, driver: str
) -> None:
    submit.submit(api, submission)
    if driver == "Pending":
        server.put(PODS, driver_pod("Pending"))
    started = time.monotonic()
    assert submit.cancel(api, "clicks-1") == "cancelled"
    assert time.monotonic() - started < 5
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.state, record.is_over) == ("cancelled", True)
    assert server.kinds() == []


def test_a_run_that_is_over_keeps_its_end_when_its_job_is_cancelled(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    finish(submission)
    assert submit.cancel(api, "clicks-1") == "finished"


@OUTAGES
def test_cancelling_sits_out_an_api_server_that_is_away(
    server: ApiServer, api: Api, submission: Submission, away: int | str
) -> None:
    submit.submit(api, submission)
    server.put(PODS, driver_pod("Running"))
    with outage(server, away, lambda: None):
        assert submit.cancel(api, "clicks-1", patience=1.0) == "cancelled"
    assert server.kinds() == []


def test_a_second_submission_into_an_output_that_is_in_use_is_refused(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    before, second = dict(server.objects), dataclasses.replace(submission, name="clicks-2", run_id="run-2")
    with pytest.raises(SettingsError, match="holds run run-1, which is submitted"):
        submit.submit(api, second)
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=3)
    runs.write_run(submission.job.output.directory, dataclasses.replace(record, updated=old.isoformat()))
    with pytest.raises(SettingsError, match="belongs to DaskJob 'clicks-1', whose driver has not begun; end it"):
        submit.submit(api, second)
    assert server.objects == before
    server.delete(f"{JOBS}/clicks-1")
    submit.submit(api, second)
    with pytest.raises(ClusterError), RunLog(submission.job, "run-2", "", 1):
        raise ClusterError("lost")
    with pytest.raises(SettingsError, match="holds run run-2, which is retrying"):
        submit.submit(api, dataclasses.replace(submission, name="clicks-3", run_id="run-3"))


def test_of_two_submissions_at_once_the_slower_one_goes(server: ApiServer, api: Api, submission: Submission) -> None:
    def create(body: Manifest) -> None:
        if body["kind"] == "DaskJob":
            runs.submitted(submission.job, "run-0")

    server.on_create = create
    with pytest.raises(SettingsError, match="holds run run-0"):
        submit.submit(api, submission)
    assert server.kinds() == []


@pytest.mark.parametrize("kind", ["configmaps", "poddisruptionbudgets"])
def test_a_refusal_half_way_takes_the_job_back_with_all_that_it_owns(
    server: ApiServer, api: Api, submission: Submission, kind: str
) -> None:
    server.faults.append(Fault("POST", f"/{kind}", 403))
    with pytest.raises(ClusterError, match="ask for the Role"):
        submit.submit(api, submission)
    assert server.kinds() == []
    assert runs.read_run(submission.job.output.directory) is None


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user presses Ctrl-C while the job's file is created."""
    create = Api.create

    def interrupt(self: Api, body: Manifest) -> Manifest:
        if body["kind"] == "ConfigMap":
            raise KeyboardInterrupt
        return create(self, body)

    monkeypatch.setattr(Api, "create", interrupt)


@pytest.mark.usefixtures("interrupted")
def test_a_submission_that_is_interrupted_half_way_leaves_no_job(
    server: ApiServer, api: Api, submission: Submission, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        submit.submit(api, submission)
    assert server.kinds() == []
    assert caplog.text == ""


@pytest.mark.parametrize("run_id", ["run-1", "run-0", ""])
def test_a_submission_that_is_interrupted_before_its_answer_takes_back_its_own_job_alone(
    server: ApiServer, api: Api, submission: Submission, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    """The server stores the DaskJob, and Ctrl-C comes before it answers; or one of that name is another run's."""

    def interrupt(self: Api, body: Manifest) -> Manifest:
        if run_id:
            metadata = {**body["metadata"], "annotations": {**body["metadata"]["annotations"], "dfm/run-id": run_id}}
            server.put(JOBS, {**body, "metadata": metadata})
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "create", interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit.submit(api, submission)
    assert server.kinds() == (["DaskJob"] if run_id == "run-0" else [])
    assert runs.read_run(submission.job.output.directory) is None


def test_a_job_that_may_have_been_made_is_told_where_the_server_is_away(
    server: ApiServer, api: Api, submission: Submission, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def interrupt(self: Api, body: Manifest) -> Manifest:
        server.away = 503
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "create", interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit.submit(api, submission)
    assert "DaskJob clicks-1 may be left half-made in namespace team" in caplog.text
    assert "delete it: dfm cancel clicks-1 --kubernetes --namespace team" in caplog.text


@pytest.mark.usefixtures("interrupted")
def test_a_job_that_cannot_be_taken_back_is_told_with_the_command_that_deletes_it(
    server: ApiServer, api: Api, submission: Submission, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.append(Fault("DELETE", "/clicks-1", 403))
    with pytest.raises(KeyboardInterrupt):
        submit.submit(api, submission)
    assert server.kinds() == ["DaskJob"]
    assert "DaskJob clicks-1 is left half-made in namespace team" in caplog.text
    assert "(Kubernetes refuses a request for a DaskJob (403): told so by the test" in caplog.text
    assert "delete it: dfm cancel clicks-1 --kubernetes --namespace team" in caplog.text


@pytest.mark.usefixtures("interrupted")
def test_a_second_interrupt_while_a_job_is_taken_back_tells_that_it_is_left(
    server: ApiServer, api: Api, submission: Submission, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "delete", interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit.submit(api, submission)
    assert "deleting it failed (KeyboardInterrupt); delete it: dfm cancel clicks-1 --kubernetes" in caplog.text


def test_a_job_that_the_operator_does_not_take_up_is_deleted_so_that_it_cannot_begin_later(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert (found.state, found.exit_code) == ("lost", 4)
    assert (
        "the Dask operator does not run, or may not make it. It is deleted, so that it does not start" in found.reason
    )
    assert server.kinds() == []
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.state, record.error and record.error["type"]) == ("failed", "NeverStarted")


def test_a_job_that_moves_at_the_last_moment_is_not_deleted(
    server: ApiServer, api: Api, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit.submit(api, submission)
    delete = Api.delete

    def operator_returns(self: Api, kind: str, name: str, version: str = "") -> bool:
        job = server.objects[f"{JOBS}/clicks-1"]
        server.put(JOBS, {**job, "status": {"jobStatus": "ClusterCreated"}})
        server.put(PODS, driver_pod("Running"))
        finish(submission)
        return delete(self, kind, name, version)

    monkeypatch.setattr(Api, "delete", operator_returns)
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert found.succeeded
    assert "DaskJob" in server.kinds()


def test_a_pod_that_does_not_start_in_time_ends_the_job_with_the_reason(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    kubernetes = dataclasses.replace(submission.job.kubernetes, start_timeout=1)
    submit.submit(api, dataclasses.replace(submission, job=dataclasses.replace(submission.job, kubernetes=kubernetes)))
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: too little memory"}
    server.put(PODS, driver_pod("Pending", conditions=[condition]))
    found, _ = follow.follow(api, "clicks-1", None, lambda event: None)
    assert (found.state, found.exit_code) == ("lost", 4)
    assert "did not start within 1 s" in found.reason
    assert "0/3 nodes: too little memory" in found.reason
    assert server.kinds() == []


def test_what_keeps_pods_from_being_made_at_all_is_said(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    labels = {"dask.org/cluster-name": "clicks-1"}
    quota = 'pods "clicks-1-default-worker-x" is forbidden: exceeded quota: team, requested: limits.cpu=2'
    failed = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": quota}]}
    deployment = {"kind": "Deployment", "metadata": {"name": "clicks-1-worker-x", "labels": labels}, "status": failed}
    server.put("/apis/apps/v1/namespaces/team/deployments", deployment)
    for number, (about, kind, reason, message) in enumerate(
        [
            ("clicks-1", "Error", "Logging", "serviceaccount dfm not found"),
            ("clicks-10", "Warning", "FailedCreate", "of another job"),
            ("clicks-1-runner", "Normal", "Pulled", "well"),
            ("clicks-1-runner", "Warning", "Unhealthy", "as always"),
        ]
    ):
        body = {"involvedObject": {"kind": "DaskJob", "name": about}, "type": kind, "reason": reason}
        server.put(EVENTS, {"kind": "Event", "metadata": {"name": f"e{number}"}, **body, "message": message})
    state = follow.state_of(api, "clicks-1")
    assert state.problems == [
        f"deployment clicks-1-worker-x: {quota}", "daskjob clicks-1: Logging: serviceaccount dfm not found",
    ]  # fmt: skip
    server.faults += [Fault("GET", "/deployments", 403)]  # a Role of an earlier version
    assert follow.state_of(api, "clicks-1").problems == []


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        (403, "exceeded quota: team, requested: count/daskjobs=1", "ask for a larger quota"),
        (403, "unable to create new content in namespace team because it is being terminated", "name another one with"),
        (404, 'namespaces "team" not found', "kubectl create namespace team"),
    ],
)
def test_refusals_of_the_namespace_are_told_with_a_remedy(
    server: ApiServer, api: Api, submission: Submission, status: int, message: str, told: str
) -> None:
    server.faults.append(Fault("POST", "/daskjobs", status, message=message))
    with pytest.raises(ClusterError, match=told):
        submit.submit(api, submission)


@pytest.mark.parametrize(
    "text",
    ["{", "clusters: [", "[]", "apiVersion: v1\nclusters: 3\ncurrent-context: a\ncontexts: []\n", "BROKEN CERTIFICATE"],
)
def test_a_kubeconfig_that_cannot_be_used_is_told_in_a_sentence(server: ApiServer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    if text.isupper():
        config = json.loads(path.read_text())
        config["clusters"][0]["cluster"]["certificate-authority-data"] = "bm8gY2VydGlmaWNhdGU="
        config["clusters"][0]["cluster"]["server"] = config["clusters"][0]["cluster"]["server"].replace("http", "https")
        text = json.dumps(config)
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"kubeconfig|no Kubernetes cluster is configured"):
        Api().get("Pod", "x")


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in a pod, whose cluster is https://in-cluster and whose namespace is "pods"."""
    import kubernetes.config

    def load(client_configuration: Any) -> None:
        client_configuration.host = "https://in-cluster"

    read = Path.read_text
    monkeypatch.setattr(kubernetes.config, "load_incluster_config", load)
    monkeypatch.setattr(
        Path, "read_text", lambda self, *how: "pods" if "serviceaccount" in str(self) else read(self, *how)
    )


def test_in_a_pod_the_cluster_that_is_named_is_meant_and_no_other(
    pod: None, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"
    (name,) = (each["name"] for each in json.loads(path.read_text())["contexts"])
    with pytest.raises(SettingsError, match=rf"no context 'prod-typo' in {path}; there are: {name}\."):
        Api("", "prod-typo")
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "current-context": ""}))
    assert Api("", name).list("Pod")[0] == []
    with pytest.raises(SettingsError, match=rf"no context '' in {path}"):
        Api()
    path.write_text(json.dumps({**written, "clusters": []}))
    with pytest.raises(SettingsError, match="the kubeconfig cannot be used"):
        Api()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"none; there are: none\."):
        Api()


def test_an_empty_kubeconfig_variable_names_none(
    pod: None, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Api().namespace == "pods"
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").touch()
    assert Api().namespace == "pods", "nor does a file without a word"
    (tmp_path / "kubeconfig").rename(tmp_path / ".kube/config")
    assert Api("team").list("Pod")[0] == []


# --- upkeep ---------------------------------------------------------------------------------------------


def ago(**time: float) -> str:
    return f"{datetime.datetime.now(datetime.UTC) - datetime.timedelta(**time):%Y-%m-%dT%H:%M:%SZ}"


def put_job(server: ApiServer, name: str, status: Manifest, ttl: int = 3600, created: str = "") -> None:
    metadata = {
        "name": name, "labels": {"app.kubernetes.io/managed-by": "dfm"}, "creationTimestamp": created or ago(days=2),
        "annotations": {"dfm/ttl-after-finished": str(ttl), "dfm/output": f"memory://upkeep/{name}"},
    }  # fmt: skip
    server.put(JOBS, {"kind": "DaskJob", "metadata": metadata, "status": status})


def test_jobs_that_ended_long_ago_go_with_all_they_own_and_others_stay(server: ApiServer, api: Api) -> None:
    put_job(server, "old", {"jobStatus": "Successful", "endTime": ago(hours=2)})
    put_job(server, "failed", {"jobStatus": "Failed", "endTime": ago(hours=3)})
    put_job(server, "lost", {"jobStatus": "Running"})  # its driver's pod is gone
    put_job(server, "young", {"jobStatus": "Successful", "endTime": ago(minutes=5)})
    put_job(server, "kept", {"jobStatus": "Successful", "endTime": ago(days=1)}, ttl=0)
    put_job(server, "running", {"jobStatus": "Running"})
    labels = {"dask.org/cluster-name": "running", "dask.org/component": "job-runner"} | {MANAGED[0]: MANAGED[1]}
    server.put(PODS, {"kind": "Pod", "metadata": {"name": "r", "labels": labels}, "status": {"phase": "Running"}})
    foreign = {
        "kind": "DaskJob",
        "metadata": {"name": "foreign"},
        "status": {"jobStatus": "Failed", "endTime": ago(days=9)},
    }
    server.put(JOBS, foreign)
    for name, job, age in (("a", "gone", 30), ("b", "young", 30), ("c", "gone", 1)):
        metadata = {
            "name": name,
            "labels": {MANAGED[0]: MANAGED[1], "dfm/job": job},
            "creationTimestamp": ago(minutes=age),
        }
        server.put("/api/v1/namespaces/team/configmaps", {"kind": "ConfigMap", "metadata": metadata})
    due = ["ConfigMap a", "DaskJob failed", "DaskJob lost", "DaskJob old"]
    assert sorted(upkeep.prune(api, dry_run=True)) == due
    assert sorted(upkeep.prune(api)) == due
    left = {body["metadata"]["name"] for body in server.objects.values()}
    assert left == {"young", "kept", "running", "foreign", "b", "c", "r"}
    assert sorted(upkeep.prune(api, older_than=60)) == ["DaskJob kept", "DaskJob young"]
    assert {body["metadata"]["name"] for body in server.objects.values() if body["kind"] == "DaskJob"} == {
        "running", "foreign",
    }  # fmt: skip


def test_a_job_that_moves_while_it_is_looked_at_is_not_pruned(
    server: ApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(server, "lost", {"jobStatus": "Running"})
    listed = upkeep.jobs_in(api)
    put_job(server, "lost", {"jobStatus": "Running"})
    monkeypatch.setattr(upkeep, "jobs_in", lambda api: listed)
    assert upkeep.prune(api) == []
    assert server.kinds() == ["DaskJob"]


def test_submitting_prunes_and_a_role_that_does_not_allow_that_is_no_obstacle(
    server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clicks.toml"
    path.write_text(JOB.format(name=tmp_path.name))
    put_job(server, "old", {"jobStatus": "Successful", "endTime": ago(hours=2)})
    server.faults.append(Fault("GET", "/daskjobs", 403))
    for number, left in enumerate([True, False]):
        output = f"output.directory=memory://k8s/{tmp_path.name}-{number}"
        done = CliRunner().invoke(cli, ["submit", str(path), "--kubernetes", "--set", output], standalone_mode=False)
        assert done.exception is None, done.output
        assert (f"{JOBS}/old" in server.objects) is left
    assert "jobs that ended long ago are not pruned" in caplog.text


@pytest.mark.parametrize("as_json", [False, True])
def test_the_name_of_a_job_is_told_before_old_ones_are_pruned(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def interrupt(api: Api) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upkeep, "tidy", interrupt)
    path = tmp_path / "clicks.toml"
    path.write_text(JOB.format(name=tmp_path.name))
    done = CliRunner().invoke(cli, ["submit", str(path), "--kubernetes", *["--json"] * as_json])
    (name,) = (each["metadata"]["name"] for each in server.objects.values() if each["kind"] == "DaskJob")
    assert name in done.output


def test_the_commands_list_and_prune_the_jobs_of_a_namespace(
    server: ApiServer, api: Api, submission: Submission
) -> None:
    submit.submit(api, submission)
    finish(submission)
    put_job(server, "old", {"jobStatus": "Successful", "endTime": ago(hours=2)})

    def run(*arguments: str) -> list[Manifest]:
        done = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False, catch_exceptions=False)
        return [json.loads(line) for line in done.output.splitlines()]

    listed = {job["name"]: job for job in run("list", "--kubernetes")}
    assert (listed["clicks-1"]["outcome"], listed["clicks-1"]["driver"]) == ("finished", "missing")
    assert (listed["old"]["status"], listed["old"]["outcome"]) == ("Successful", "unknown")
    assert [event["object"] for event in run("prune", "--kubernetes")] == ["DaskJob old"]
    assert "--kubernetes is needed" in str(CliRunner().invoke(cli, ["prune"]).output)


# --- the commands ---------------------------------------------------------------------------------------

JOB = """
[data]
train = "s3://in/x"
[output]
directory = "memory://k8s/{name}"
[kubernetes]
workers = 2
worker_memory = "4GiB"
driver_memory = "2GiB"
scratch = "20GiB"
"""


def test_the_state_of_a_job_is_shown_though_its_storage_cannot_be_read_from_here(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no credentials for s3://models")

    put_job(server, "clicks-1", {"jobStatus": "ClusterCreated"})
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    server.put(PODS, driver_pod("Pending", containerStatuses=[{"name": "driver", "state": waiting}]))
    monkeypatch.setattr(follow, "ending_of", refuse)
    done = CliRunner().invoke(cli, ["status", "clicks-1", "--kubernetes", "--json"], standalone_mode=False)
    (told,) = map(json.loads, done.output.splitlines())
    assert (told["outcome"], told["reason"]) == ("not readable here", "no credentials for s3://models")
    assert "ImagePullBackOff" in told["problems"][0]
    done = CliRunner().invoke(cli, ["status", "clicks-1", "--kubernetes"], standalone_mode=False)
    assert re.search(r"status .*ClusterCreated", done.output)
    assert "no such image" in done.output
    done = CliRunner().invoke(cli, ["list", "--kubernetes", "--json"], standalone_mode=False)
    assert json.loads(done.output)["outcome"] == "not readable here"


def test_the_commands_submit_show_and_cancel_a_job(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "clicks.toml"
    path.write_text(JOB.format(name=tmp_path.name))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments], standalone_mode=False, catch_exceptions=False)
        return done.output

    shown = run("submit", str(path), "--kubernetes", "--dry-run")
    assert "kind: DaskJob" in shown
    assert server.requests == []
    told = json.loads(run("submit", str(path), "--kubernetes", "--json"))
    assert told["name"] == f"clicks-{told['run_id']}"
    server.put(PODS, driver_pod("Pending"))
    status = json.loads(run("status", told["name"], "--kubernetes", "--json"))
    assert (status["outcome"], status["driver"], status["directory"]) == ("submitted", "missing", told["directory"])
    assert "is deleted" in run("cancel", told["name"], "--kubernetes")
    assert f"{JOBS}/{told['name']}" not in server.objects


def test_objects_that_kubectl_applies_are_followed_and_cleaned_up_like_submitted_ones(
    server: ApiServer, api: Api, tmp_path: Path
) -> None:
    path = tmp_path / "clicks.toml"
    path.write_text(JOB.format(name=tmp_path.name))
    done = CliRunner().invoke(cli, ["submit", str(path), "--kubernetes", "--dry-run"], standalone_mode=False)
    objects = list(yaml.safe_load_all(done.output))
    paths = {
        "ConfigMap": "/api/v1",
        "DaskJob": "/apis/kubernetes.dask.org/v1",
        "PodDisruptionBudget": "/apis/policy/v1",
    }
    for body in objects:  # kubectl apply -f -
        body["metadata"]["creationTimestamp"] = ago(hours=1)
        server.put(f"{paths[body['kind']]}/namespaces/team/{body['kind'].lower()}s", body)
    dask_job = next(body for body in objects if body["kind"] == "DaskJob")
    name, metadata = dask_job["metadata"]["name"], dask_job["metadata"]
    # What the driver's pod would do: nobody has left a record for it.
    (container,) = dask_job["spec"]["job"]["spec"]["containers"]
    run_id = container["args"][container["args"].index("--run-id") + 1]
    assert run_id == metadata["annotations"]["dfm/run-id"]
    mounted = next(each for each in dask_job["spec"]["job"]["spec"]["volumes"] if each["name"] == "job")
    file = next(body for body in objects if body["kind"] == "ConfigMap")
    assert mounted["configMap"]["name"] == file["metadata"]["name"]
    job = Job.from_dict(tomllib.loads(file["data"]["job.toml"]))
    labels = {"dask.org/cluster-name": name, "dask.org/component": "job-runner"} | dict([MANAGED])
    pod = {"kind": "Pod", "metadata": {"name": f"{name}-runner", "labels": labels}, "status": {"phase": "Running"}}
    server.put(PODS, pod)
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert supervisor.drive(job, command, run_id, 1, lambda line: None) == 3
    found, _ = follow.follow(api, name, {}, lambda event: None)
    assert (found.state, found.exit_code) == ("failed", 3)
    server.put(JOBS, {**dask_job, "status": {"jobStatus": "Failed", "endTime": ago(seconds=1)}})
    assert upkeep.prune(api, older_than=0) == [f"DaskJob {name}"]
    assert sorted(upkeep.prune(api, older_than=0)) == [
        f"ConfigMap {file['metadata']['name']}", f"PodDisruptionBudget {objects[2]['metadata']['name']}",
    ]  # fmt: skip
    assert server.kinds() == []
