"""From a job file to a DaskJob that runs, and to its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfm import jobs
from dfm.errors import ClusterError, SettingsError
from dfm.kubernetes import manifest, sizing
from dfm.kubernetes.api import Api, NotThere
from dfm.kubernetes.follow import CLUSTER_LABEL, COMPONENT_LABEL, DRIVER, state_of
from dfm.kubernetes.manifest import Manifest, Submission
from dfm.runs import record as runs
from dfm.runs.outcome import outcome_of
from dfm.settings.job import Job
from dfm.storage import files

_STOPPING = 60.0
"""Seconds that a driver gets to end by itself before its pods are deleted."""


@dataclass(frozen=True)
class Submitted:
    """A job that Kubernetes has."""

    name: str
    namespace: str
    run_id: str
    directory: str


def prepare(job: Job, name: str = "", stem: str = "dfm", namespace: str = "") -> Submission:
    """All that a submission needs, sizes included: where one is "auto", the footers of the shards are read for it."""
    job.require_training()
    _check_urls(job)
    run_id = runs.new_run_id()
    planned = jobs.plan(job) if sizing.needs_plan(job.kubernetes) else None
    sizes = sizing.size(job.kubernetes, planned)
    return Submission(name or manifest.name_for(stem, run_id), namespace, job, sizes, run_id)


def _check_urls(job: Job) -> None:
    """SettingsError where the job names a path of this machine, which no pod has."""
    named = {"output.directory": (job.output.directory,), "data.train": job.data.train}
    for knob, urls in {**named, "data.validation": job.data.validation}.items():
        for url in urls:
            if "://" not in url:
                raise SettingsError(
                    f"{knob} = {url!r} is a path of this machine; in Kubernetes it must be a URL of an object store "
                    "(s3://…), or file://… of a volume that all pods mount"
                )


def submit(api: Api, submission: Submission) -> Submitted:
    """Create the job's objects; what was created goes away again where a later one is refused."""
    submission = replace(submission, namespace=api.namespace)
    file, dask_job, budget = manifest.objects(submission)
    job = submission.job
    created: list[Manifest] = []
    with _removing(api, created):
        created.append(api.create(file))
        if not files.is_local(job.output.directory):
            runs.submitted(job, submission.run_id, f"DaskJob {api.namespace}/{submission.name}")
        owner = api.create(dask_job)
        created.append(owner)
        created.append(api.create(budget))
        for each in (file, budget):
            api.adopt(each["kind"], each["metadata"]["name"], owner)
    return Submitted(submission.name, api.namespace, submission.run_id, job.output.directory)


@contextlib.contextmanager
def _removing(api: Api, created: list[Manifest]) -> Iterator[None]:
    try:
        yield
    except Exception:
        for each in reversed(created):
            with contextlib.suppress(ClusterError, NotThere):
                api.delete(each["kind"], each["metadata"]["name"])
        raise


def cancel(api: Api, name: str, options: dict[str, Any] | None = None, patience: float = _STOPPING) -> str:
    """Ask the driver to stop, wait for it a while, delete the job with all its pods; the state it ended in."""
    state = state_of(api, name)
    if state.directory:
        with contextlib.suppress(OSError):  # who may delete a job need not be able to reach its storage
            runs.request_cancel(state.directory, options)
            deadline = time.monotonic() + patience
            while not state.driver_is_gone and time.monotonic() < deadline:
                if outcome_of(state.directory, options, state.run_id).is_over:
                    break
                time.sleep(1.0)
                state = state_of(api, name)
    delete(api, name)
    return outcome_of(state.directory, options, state.run_id).state


def delete(api: Api, name: str) -> None:
    """Delete a DaskJob and, should the operator have lost its thread, its cluster and its driver's pod."""
    for kind, each in (("DaskJob", name), ("DaskCluster", name), ("Pod", f"{name}-runner")):
        with contextlib.suppress(NotThere):
            api.delete(kind, each)


def delete_leftovers(api: Api, name: str) -> None:
    """Take the cluster of a run that is over away, should the operator have failed to: its workers cost money."""
    with contextlib.suppress(NotThere, ClusterError):
        api.delete("DaskCluster", name)


def driver_log(api: Api, name: str, follow: bool, line: Callable[[str], None]) -> None:
    """Hand on the lines of the driver's log; when the connection breaks it is taken up again where it was."""
    last, at_last = "", set[str]()  # the server repeats the second that `since` falls into
    while True:
        pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name},{COMPONENT_LABEL}={DRIVER}")
        if not pods:
            raise ClusterError(
                f"DaskJob {name!r} has no driver's pod in namespace {api.namespace!r}; its record is in its output: "
                "dfm logs DIRECTORY"
            )
        phase = pods[0].get("status", {}).get("phase", "Pending")
        for moment, text in api.log(pods[0]["metadata"]["name"], "driver", follow, since=last):
            if moment < last or (moment == last and text in at_last):
                continue
            line(text)
            at_last = {*at_last, text} if moment == last else {text}
            last = moment
        if not follow or phase in ("Succeeded", "Failed"):
            return
        time.sleep(1.0)


def stem_of(path: str) -> str:
    """The name of a job file, for the name of its DaskJob."""
    return Path(path).stem
