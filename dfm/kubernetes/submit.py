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
from dfm.kubernetes.follow import CLUSTER_LABEL, COMPONENT_LABEL, DRIVER, PAUSE, OnEvent, Patient, state_of
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
    records = not files.is_local(job.output.directory)
    seen = runs.read_run(job.output.directory, job.data.storage_options) if records else None
    with _removing(api, created):
        for each in (file, budget):
            created.append(api.create(each))
        owner = api.create(dask_job)
        created.append(owner)
        for each in (file, budget):
            api.adopt(each["kind"], each["metadata"]["name"], owner)
        if records:  # now that the job is there: one that is refused leaves the record of the run before it alone
            runs.submitted_since(seen, job, submission.run_id, f"DaskJob {api.namespace}/{submission.name}")
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
    """Delete a DaskJob; its cluster, its driver's pod and its file go with it, by owner references."""
    with contextlib.suppress(NotThere):
        api.delete("DaskJob", name)


def driver_log(api: Api, name: str, follow: bool, line: Callable[[str], None], tell: OnEvent) -> None:
    """Hand on the lines of the driver's log; when the connection breaks it is taken up again where it was."""
    if not follow:
        _LogReader(api, line).read(_driver(api, name), False)
        return
    reader, patient = _LogReader(api, line), Patient(tell)
    while True:
        pod = patient.ask(_driver, api, name)
        whole = pod and patient.ask(reader.read, pod, True)
        if whole and pod and pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        time.sleep(PAUSE)


def _driver(api: Api, name: str) -> Manifest:
    """The driver's pod of a job. ClusterError where there is none."""
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name},{COMPONENT_LABEL}={DRIVER}")
    if not pods:
        raise ClusterError(
            f"DaskJob {name!r} has no driver's pod in namespace {api.namespace!r}; its record is in its output: "
            "dfm logs DIRECTORY"
        )
    return pods[0]


class _LogReader:
    """Reads a container's log on from where it was."""

    def __init__(self, api: Api, line: Callable[[str], None]) -> None:
        self._api, self._line = api, line
        self._last, self._at_last = "", set[str]()  # the server repeats the second that `since` falls into

    def read(self, pod: Manifest, follow: bool) -> bool:
        """Hand on what is new, to the end of the log (true); Away where the connection breaks before."""
        for moment, text in self._api.log(pod["metadata"]["name"], "driver", follow, since=self._last):
            if moment < self._last or (moment == self._last and text in self._at_last):
                continue
            self._line(text)
            self._at_last = {*self._at_last, text} if moment == self._last else {text}
            self._last = moment
        return True


def stem_of(path: str) -> str:
    """The name of a job file, for the name of its DaskJob."""
    return Path(path).stem
