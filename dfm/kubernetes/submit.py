"""From a job file to a DaskJob that runs, and to its end."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfm.distributed.admitting import admitted
from dfm.errors import ClusterError, SettingsError, StorageError
from dfm.kubernetes import manifest, sizing
from dfm.kubernetes.api import Api, Away, NotThere, Refused, run_of
from dfm.kubernetes.follow import (
    CLUSTER_LABEL,
    COMPONENT_LABEL,
    DRIVER,
    PAUSE,
    JobState,
    OnEvent,
    look,
    state_of,
)
from dfm.kubernetes.manifest import Manifest, Submission
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.outcome import outcome_of
from dfm.runs.patience import Patient
from dfm.runs.record import RunRecord
from dfm.settings.job import Job
from dfm.storage import files
from dfm.storage.tables import folder_of
from dfm.training.inputs import find_inputs
from dfm.training.memory import plan_of
from dfm.training.order import Order

logger = logging.getLogger(__name__)
_STOPPING = 60.0
"""Seconds that a driver gets to end by itself before its pods are deleted."""
_ENDING = 60.0
"""Seconds in which a driver's pod is gone once its job is deleted: longer than its grace."""


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
    planned = _plan(job) if sizing.needs_plan(job.kubernetes) else None
    sizes = sizing.size(job.kubernetes, planned)
    if job.cluster.min_workers > sizes.workers:
        raise SettingsError(
            f"cluster.min_workers = {job.cluster.min_workers} are never there, for the job gets {sizes.workers} "
            f"(kubernetes.workers = {job.kubernetes.workers!r}); ask for more of these, or wait for fewer"
        )
    return Submission(name or manifest.name_for(stem, run_id), namespace, job, sizes, run_id)


def _plan(job: Job) -> dict[str, Any]:
    """The plan of the job. Its output and the model that it goes on from may be places that only pods reach: no look is
    taken at them.
    """
    folders = [(url, folder_of(url)) for url in job.data.train]
    away = [url for url, folder in folders if files.is_local(folder) and not glob.glob(str(files.local_path(folder)))]
    if away:
        raise SettingsError(
            f"data.train = {away[0]!r} is not on this machine, so that no sizes can be derived from it; set "
            "kubernetes.workers, worker_memory, driver_memory and scratch (dfm knobs)"
        )
    inputs = find_inputs(job)
    earlier = 2**job.model.hash_bits if job.training.warm_start else 0  # as many as it can have
    return plan_of(admitted(Order.of(job), inputs), inputs, earlier)


def _check_urls(job: Job) -> None:
    """SettingsError where the job names a path that no pod has, or would write to a volume that keeps nothing."""
    named = {"output.directory": (job.output.directory,), "data.train": job.data.train}
    named |= {"data.validation": job.data.validation}
    named |= {"training.warm_start": (job.training.warm_start,)} if job.training.warm_start else {}
    for knob, urls in named.items():
        for url in urls:
            folder = folder_of(url) or url
            if "://" not in folder:
                raise SettingsError(
                    f"{knob} = {url!r} is a path of this machine; in Kubernetes it must be a URL of an object store "
                    "(s3://…), or file://… of a volume that all pods mount (kubernetes.volumes)"
                )
            if files.is_local(folder):
                _check_volume(knob, folder, job.kubernetes.volumes)


def _check_volume(knob: str, url: str, volumes: Sequence[Mapping[str, Any]]) -> None:
    path = f"{os.path.normpath(files.local_path(url))}/"
    found = [volume for volume in volumes if path.startswith(f"{volume['mount']}/")]
    if not found:
        mounts = ", ".join(each["mount"] for each in volumes) or "none"
        raise SettingsError(
            f"{knob} = {url!r} lies below no volume that the pods mount (kubernetes.volumes: {mounts}); name a URL of "
            'an object store, or mount a volume there: volumes = [{mount = "/data", claim = "NAME"}]'
        )
    volume = max(found, key=lambda each: len(each["mount"]))
    keeps = not {"empty", "secret", "config_map"} & set(volume) and not volume.get("read_only")
    if knob == "output.directory" and not keeps:
        raise SettingsError(
            f"{knob} = {url!r} lies in a volume that is read-only, or each pod's own; name a claim that can be written"
        )


def submit(api: Api, submission: Submission) -> Submitted:
    """Create the job's objects and the record of its run; nothing is changed where the DaskJob is refused.

    SettingsError where another run is at work in the output directory. The DaskJob comes first and owns the others from
    their first moment on, so that none outlives it; should one of them be refused, or the user give up waiting for it
    or for the DaskJob (Ctrl-C), the DaskJob goes, and they with it.
    """
    submission = replace(submission, namespace=api.namespace)
    file, dask_job, budget = manifest.objects(submission)
    job = submission.job
    seen = _check_free(api, job, submission.run_id)
    owner: Manifest = {}
    try:
        owner = _created(api, dask_job)
        for each in (file, budget):
            _created(api, manifest.owned_by(each, owner))
        if not files.is_local(job.output.directory):
            where = f"{DASK_JOB} {api.namespace}/{submission.name}"
            runs.submitted_since(seen, job, submission.run_id, where, submission.patience + lifecycle.START_SECONDS)
    except BaseException as error:
        if owner or not isinstance(error, Refused | SettingsError):
            _take_back(api, submission, is_made=bool(owner))
        raise
    return Submitted(submission.name, api.namespace, submission.run_id, job.output.directory)


def _take_back(api: Api, submission: Submission, is_made: bool) -> None:
    """Delete the DaskJob of a submission that came to no end. The error that led here is the one to raise; where
    deleting fails, or is given up as well, what is left is told beside it.

    is_made: whether it is known to be there. A request whose answer was not waited for may have made it: then it is
    looked for, and one of that name that is another run's stays.
    """
    name = submission.name
    try:
        if is_made or run_of(api.get("DaskJob", name)) == submission.run_id:
            api.delete("DaskJob", name)
    except NotThere:
        return
    except BaseException as error:
        logger.error(
            "DaskJob %s %s left half-made in namespace %s and costs its workers, because deleting it failed (%s); "
            "delete it: dfm cancel %s --kubernetes --namespace %s",
            name, "is" if is_made else "may be", api.namespace, str(error) or type(error).__name__, name, api.namespace,
        )  # fmt: skip


def _created(api: Api, body: Manifest) -> Manifest:
    """The object as it is stored; a server that is away is waited for, one that refuses is right."""
    return Patient(_warn, eager=(Away,)).insist(api.create, body)


DASK_JOB = "DaskJob"
"""The word by which the record of a run names what it was submitted to: DaskJob NAMESPACE/NAME."""


def _check_free(api: Api, job: Job, run_id: str) -> RunRecord | None:
    """The record in the output directory. SettingsError where another run is at work there, or its DaskJob waits."""
    directory, options = job.output.directory, job.data.storage_options
    if files.is_local(directory):
        return None  # a folder of the pods' volumes, which this machine does not have
    record = runs.check_free(directory, options, run_id)
    if record is not None and record.state == "submitted" and record.run_id != run_id:
        kind, _, place = record.scheduler.partition(" ")
        namespace, _, name = place.partition("/")
        if kind == DASK_JOB and namespace == api.namespace and _is_there(api, name):
            raise SettingsError(
                f"output.directory = {directory!r} belongs to DaskJob {name!r}, whose driver has not begun; end it "
                f"(dfm cancel {name} --kubernetes --namespace {namespace}), or choose another output.directory"
            )
    return record


def _is_there(api: Api, name: str) -> bool:
    try:
        api.get("DaskJob", name)
    except NotThere:
        return False
    return True


def _warn(event: dict[str, Any]) -> None:
    logger.warning("waiting: %s", event["reason"])


def cancel(
    api: Api, name: str, options: dict[str, Any] | None = None, patience: float = _STOPPING, tell: OnEvent = _warn
) -> str:
    """End a job: its driver is asked to stop where it runs, then all goes; the state that its run ended in.

    A driver that has not begun, or does not answer within `patience` seconds, cannot say so: then its record is ended
    here, once its pod is gone.
    """
    patient, store = Patient(tell, eager=(Away,)), Patient(tell, answered=True)
    state = patient.insist(state_of, api, name)
    asked = _request(state, options, tell)
    if asked and state.driver == "Running":
        deadline = time.monotonic() + patience
        while not (state.driver_is_gone or store.ask(_is_over, state, options)) and time.monotonic() < deadline:
            time.sleep(PAUSE)
            state = patient.ask(look, api, name, state) or state
    patient.insist(api.delete, "DaskJob", name)
    if not asked:
        return "unknown"
    deadline = time.monotonic() + _ENDING
    while not store.ask(_is_over, state, options) and state.driver != "missing" and time.monotonic() < deadline:
        time.sleep(PAUSE)
        state = patient.ask(look, api, name, state) or state
    if state.driver == "missing":
        runs.settle_in(state.directory, options, state.run_id, "cancelled", lifecycle.CANCELLER)
    return outcome_of(state.directory, options, state.run_id).state


def _request(state: JobState, options: dict[str, Any] | None, tell: OnEvent) -> bool:
    """Leave the request to stop where the driver looks; who may delete a job need not be able to reach its storage."""
    if not state.directory or files.is_local(state.directory):
        return False
    try:
        record = runs.read_run(state.directory, options)
        if record is not None and record.run_id == state.run_id:
            runs.request_cancel(state.directory, options)
    except (OSError, StorageError) as error:
        tell({"event": "waiting", "reason": f"the run cannot be asked to stop: {error}"})
        return False
    return True


def _is_over(state: JobState, options: dict[str, Any] | None) -> bool:
    found = outcome_of(state.directory, options, state.run_id)
    return found.is_over and found.state != "lost"


def delete(api: Api, name: str) -> None:
    """Delete a DaskJob and wait until its driver is gone, which may still write to the record of its run.

    Its cluster, its driver's pod and its file go with it, by owner references.
    """
    api.delete("DaskJob", name)
    deadline = time.monotonic() + _ENDING
    while api.list("Pod", labels=f"{CLUSTER_LABEL}={name},{COMPONENT_LABEL}={DRIVER}")[0]:
        if time.monotonic() > deadline:
            raise Away(f"the driver's pod of DaskJob {name} does not end; see that its node is up, and try again")
        time.sleep(PAUSE)


def driver_log(api: Api, name: str, follow: bool, line: Callable[[str], None], tell: OnEvent) -> None:
    """Hand on the lines of the driver's log; when the connection breaks it is taken up again where it was."""
    if not follow:
        _LogReader(api, line).read(_driver(api, name), False)
        return
    reader, patient = _LogReader(api, line), Patient(tell, eager=(Away,))
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
