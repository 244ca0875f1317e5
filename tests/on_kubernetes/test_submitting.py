"""The submit client against a server that answers like the Kubernetes API: created once, followed to the truth."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dfm.cli import kubernetes as cli_kubernetes
from dfm.cli.app import cli
from dfm.errors import ClusterError, SettingsError
from dfm.kubernetes import api as api_module
from dfm.kubernetes import follow, sizing, submit
from dfm.kubernetes.api import Api
from dfm.kubernetes.manifest import Manifest, Submission
from dfm.runs import record as runs
from dfm.runs.record import RunLog
from dfm.settings.job import Job
from dfm.storage import files
from tests.support.api_server import ApiServer, Fault, api_server

pytest.importorskip("kubernetes")
SIZES = sizing.Sizing(2, 1, 4 << 30, 2 << 30, 1 << 30, 20 << 30)
JOBS = "/apis/kubernetes.dask.org/v1/namespaces/team/daskjobs"
PODS = "/api/v1/namespaces/team/pods"


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
    uid = server.objects[f"{JOBS}/clicks-1"]["metadata"]["uid"]
    owners = [
        body["metadata"]["ownerReferences"][0]["uid"] for body in server.objects.values() if body["kind"] != "DaskJob"
    ]
    assert owners == [uid, uid]
    record = runs.read_run(submission.job.output.directory)
    assert record is not None
    assert (record.run_id, record.state, record.scheduler) == ("run-1", "submitted", "DaskJob team/clicks-1")


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


def test_a_name_that_is_taken_is_not_taken_over(server: ApiServer, api: Api, submission: Submission) -> None:
    submit.submit(api, submission)
    with pytest.raises(SettingsError, match="there is a ConfigMap 'clicks-1-job' in namespace 'team' already"):
        submit.submit(api, dataclasses.replace(submission, run_id="run-2"))
    assert server.kinds() == ["ConfigMap", "DaskJob", "PodDisruptionBudget"]


@pytest.mark.parametrize("what", ["drop", 503])
@pytest.mark.parametrize("after", [False, True], ids=["before it took effect", "after it took effect"])
def test_an_answer_that_is_lost_does_not_make_two_jobs(
    server: ApiServer, api: Api, submission: Submission, what: int | str, after: bool
) -> None:
    server.faults += [Fault("POST", "/daskjobs", what, after), Fault("POST", "/configmaps", what, after)]
    submit.submit(api, submission)
    assert server.kinds() == ["ConfigMap", "DaskJob", "PodDisruptionBudget"]


def test_a_server_that_stays_away_is_named(server: ApiServer, api: Api, submission: Submission) -> None:
    server.faults += [Fault("POST", "/configmaps", "drop")] * 5
    with pytest.raises(ClusterError, match=r"the Kubernetes API at http://127\.0\.0\.1:\d+ does not answer"):
        submit.submit(api, submission)


def test_no_kubeconfig_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="no Kubernetes cluster is configured"):
        Api()


def test_paths_of_this_machine_are_refused(tmp_path: Path) -> None:
    job = Job.from_dict({"data": {"train": "/data/x"}, "output": {"directory": "s3://out"}})
    with pytest.raises(SettingsError, match=r"data\.train = '/data/x' is a path of this machine"):
        submit.prepare(job)


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
    assert [event["event"] for event in events] == ["kubernetes", "kubernetes_away", "epoch", "done", "ended"]


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
    monkeypatch.setattr(follow, "OUTAGE", 0.3)
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
    follow._wait_for_change(api, "clicks-1")
    assert server.watched == [
        {"watch": "1", "labelSelector": "dask.org/cluster-name=clicks-1", "resourceVersion": str(server.version),
         "timeoutSeconds": "5", "allowWatchBookmarks": "false"}
    ]  # fmt: skip


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
    assert state == "running"
    assert "cancel.json" in names
    assert server.kinds() == ["ConfigMap", "Pod", "PodDisruptionBudget"]  # these the job owns
    with pytest.raises(ClusterError, match="there is no DaskJob 'clicks-1'"):
        submit.cancel(api, "clicks-1")


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
