"""An API server that goes away at any moment of a wait, and comes back: the wait goes on to the same end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfm.errors import ClusterError
from dfm.kubernetes import api as api_module
from dfm.kubernetes import follow, sizing, submit
from dfm.kubernetes.api import Api
from dfm.kubernetes.manifest import Submission
from dfm.runs import patience
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.settings.job import Job
from tests.support.api_server import ApiServer, api_server

pytestmark = pytest.mark.patient

pytest.importorskip("kubernetes")
SIZES = sizing.Sizing(2, 1, 4 << 30, 2 << 30, 1 << 30, 20 << 30)
PODS = "/api/v1/namespaces/team/pods"
MOMENTS = range(1, 11)


@contextlib.contextmanager
def running_job(folder: Path, seconds: float) -> Iterator[tuple[ApiServer, Api, Callable[[], None]]]:
    """A server with one job whose driver runs, a client of it, and what makes the run end."""
    directory = f"memory://outages/{folder}"
    job = Job.from_dict({"data": {"train": "s3://in/x"}, "output": {"directory": directory}})
    with api_server(folder / "kubeconfig") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        api = Api()
        submit.submit(api, Submission("clicks-1", "", job, SIZES, "run-1"))
        server.put(PODS, driver("Running"))
        server.logs["clicks-1-runner"] = ["2026-11-21T10:00:00.000000001Z line"]
        log = RunLog(job, "run-1")
        log.__enter__()

        def end() -> None:
            error = ClusterError("the end of this run")
            log.__exit__(ClusterError, error, None)
            server.put(PODS, driver("Failed"))

        server.requests.clear()
        server.away_seconds = seconds
        yield server, api, end


def driver(phase: str) -> dict[str, Any]:
    labels = {"dask.org/cluster-name": "clicks-1", "dask.org/component": "job-runner"}
    return {"kind": "Pod", "metadata": {"name": "clicks-1-runner", "labels": labels}, "status": {"phase": phase}}


def followed(api: Api) -> Any:
    return follow.follow(api, "clicks-1", {}, lambda event: None)[0].state


def logged(api: Api) -> Any:
    lines: list[str] = []
    submit.driver_log(api, "clicks-1", True, lines.append, lambda event: None)
    return lines


def cancelled(api: Api) -> Any:
    return submit.cancel(api, "clicks-1", {}, patience=300)


COMMANDS: dict[str, tuple[Callable[[Api], Any], Any]] = {
    "follow and wait": (followed, "failed"),
    "logs": (logged, ["line"]),
    "cancel": (cancelled, "failed"),
}


def ride_out(folder: Path, command: str, moment: int, seconds: float) -> None:
    """Run a command while the server goes away with one of its requests; the run ends once it is back."""
    act, expected = COMMANDS[command]
    with running_job(folder, seconds) as (server, api, end):
        server.away_from, server.on_return = moment, end
        told = act(api)
        assert server.away_from == 0, "the command did not ask so often"
        assert told == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_goes_away_at_any_moment_and_comes_back_changes_no_end(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.01)
    for module in (follow, submit, patience):
        monkeypatch.setattr(module, "PAUSE", 0.02)
    for moment in MOMENTS:
        folder = tmp_path / f"{moment}"
        folder.mkdir()
        ride_out(folder, command, moment, 0.4)
    assert runs.read_run(f"memory://outages/{tmp_path}/1") is not None
