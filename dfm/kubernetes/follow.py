"""The state of a job on Kubernetes: read from its DaskJob, its pods, and, for the truth, the record in its output.

The operator's word is not enough: a DaskJob may stay Running for ever, its driver's pod may be gone unnoticed, and it
tells neither reasons nor exit codes (deploy/README.md, traps).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfm.errors import ClusterError
from dfm.kubernetes.api import Api, Away, NotThere, Refused
from dfm.kubernetes.manifest import OUTPUT, RUN_ID, START_TIMEOUT, Manifest
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.outcome import Outcome, outcome_of
from dfm.runs.patience import Patient
from dfm.runs.record import read_events
from dfm.storage import files

CLUSTER_LABEL, COMPONENT_LABEL = "dask.org/cluster-name", "dask.org/component"
DRIVER = "job-runner"
PATIENCE = 120.0
"""Seconds that the operator gets to make a driver's pod."""
LAST_WORD = 3.0
"""Seconds in which the last word of a driver whose pod has ended must be readable in storage."""
SILENCE = 600.0
"""Seconds after which a driver that is silent counts as lost though its pod is there: its node is out of reach."""
SETTLING = 60.0
"""Seconds that the operator gets to take note of a driver's end and to delete the cluster."""
PAUSE = 1.0
_WINDOW = 5
_LONGEST = 500
_UNMADE = ("", "JobCreated")
"""The words of a DaskJob as long as the operator has not made the driver's pod."""
_NOTED = ("Successful", "Failed", "deleted")
"""Its words once the operator has seen the driver's end, and has deleted the cluster."""
OnEvent = Callable[[dict[str, Any]], None]


class NoSuchJob(ClusterError):
    """There is no DaskJob of a name."""


@dataclass(frozen=True)
class JobState:
    """A job on Kubernetes now.

    driver: phase of its pod, "missing" where there is none. workers, wanted: pods that run, and that were asked for.
    start_timeout: seconds that the driver's pod may take to start; 0: for ever. version: of the DaskJob, as it is now.
    problems: what keeps its pods from running, one line each. exit_code: of the driver's pod, where it has ended.
    """

    name: str
    status: str
    directory: str
    run_id: str
    driver: str
    workers: int
    wanted: int = 0
    start_timeout: int = 0
    version: str = ""
    problems: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def driver_is_gone(self) -> bool:
        """Whether there was a driver and is none any more: nothing brings another one."""
        return self.driver in ("Failed", "Succeeded") or (self.driver == "missing" and self.status not in _UNMADE)

    @property
    def is_noted(self) -> bool:
        """Whether the operator has seen the driver's end and is done with the job."""
        return self.status in _NOTED

    @property
    def has_begun(self) -> bool:
        """Whether all its pods run, or its driver has ended."""
        return self.driver_is_gone or (self.driver == "Running" and self.workers >= self.wanted)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are of use to who asks how the job stands."""
        shown = dataclasses.asdict(self)
        return {name: value for name, value in shown.items() if name not in ("start_timeout", "version")}


def state_of(api: Api, name: str) -> JobState:
    """The state of a DaskJob. NoSuchJob where there is none of that name."""
    try:
        job = api.get("DaskJob", name)
    except NotThere:
        raise NoSuchJob(
            f"there is no DaskJob {name!r} in namespace {api.namespace!r}; see `dfm list --kubernetes`, or name its "
            "output directory"
        ) from None
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name}")
    state = summarise(job, pods)
    if state.has_begun:
        return state
    return dataclasses.replace(state, problems=[*state.problems, *_refusals(api, name)])


def summarise(job: Manifest, pods: list[Manifest]) -> JobState:
    """The state of a job, from a DaskJob and its pods together."""
    metadata, spec = job["metadata"], job.get("spec", {}).get("cluster", {}).get("spec", {})
    annotations = metadata.get("annotations", {})
    drivers = [pod for pod in pods if component_of(pod) == DRIVER]
    workers = [pod for pod in pods if component_of(pod) == "worker" and pod.get("status", {}).get("phase") == "Running"]
    return JobState(
        metadata["name"],
        job.get("status", {}).get("jobStatus", ""),
        annotations.get(OUTPUT, ""),
        annotations.get(RUN_ID) or metadata.get("labels", {}).get(RUN_ID, ""),
        drivers[0].get("status", {}).get("phase", "Pending") if drivers else "missing",
        len(workers),
        int(spec.get("worker", {}).get("replicas", 0)),
        int(annotations.get(START_TIMEOUT, 0)),
        metadata.get("resourceVersion", ""),
        [line for pod in pods for line in problems_of(pod)],
        _exit_code(drivers[0]) if drivers else None,
    )


def _exit_code(pod: Manifest) -> int | None:
    """That of a pod's container that has ended."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if ended := container.get("state", {}).get("terminated"):
            return int(ended.get("exitCode", 1))
    return None


_USUAL = ("Unhealthy", "FailedScheduling", "BackOff")
"""Warnings that every start brings, or that the pods tell themselves."""
_MOST = 5


def _refusals(api: Api, name: str) -> list[str]:
    """Why pods of a job are not even made (quotas, a missing service account): the newest few reasons.

    Neither the DaskJob nor a pod tells: the operator and the controllers of Deployments leave events and conditions.
    """
    found = []
    with contextlib.suppress(Refused):  # a Role of an earlier version does not allow these questions
        for each in api.list("Deployment", labels=f"{CLUSTER_LABEL}={name}")[0]:
            for condition in each.get("status", {}).get("conditions", []):
                if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                    found.append(f"deployment {each['metadata']['name']}: {condition.get('message', '')}")
        events, _ = api.list("Event", fields="type!=Normal")
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", reverse=True)
        for event in events:
            about = event["involvedObject"]
            mine = about["name"] == name or about["name"].startswith(f"{name}-")
            if mine and event.get("reason") not in _USUAL:
                kind = about.get("kind", "object").lower()
                found.append(f"{kind} {about['name']}: {event.get('reason')}: {event.get('message', '')}"[:_LONGEST])
    return list(dict.fromkeys(found))[:_MOST]


def problems_of(pod: Manifest) -> list[str]:
    """Why a pod does not run, or how it ended badly; empty for one that does well."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    found = []
    if status.get("reason"):
        found.append(f"pod {name}: {status['reason']}: {status.get('message', '')}".rstrip(": "))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            found.append(f"pod {name} fits no node: {condition.get('message', condition.get('reason', ''))}")
    for container in status.get("containerStatuses", []):
        found += _container_problems(name, container)
    return found


_HARMLESS_WAITS = ("ContainerCreating", "PodInitializing")


def _container_problems(pod: str, container: Mapping[str, Any]) -> list[str]:
    found = []
    waiting = container.get("state", {}).get("waiting")
    if waiting and waiting.get("reason") not in _HARMLESS_WAITS:
        found.append(f"pod {pod} waits: {waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": "))
    for when in ("state", "lastState"):
        ended = container.get(when, {}).get("terminated")
        if ended and (ended.get("exitCode") or ended.get("reason") == "OOMKilled"):
            remedy = "; give it more memory" if ended.get("reason") == "OOMKilled" else ""
            found.append(f"pod {pod} ended with exit code {ended.get('exitCode')} ({ended.get('reason')}){remedy}")
    return found


def component_of(pod: Manifest) -> str:
    """The part of a pod in its cluster: job-runner, scheduler or worker."""
    return str(pod["metadata"].get("labels", {}).get(COMPONENT_LABEL, ""))


# --- to the end ------------------------------------------------------------------------------------------


class Watch:
    """One look after the other at a job, until it is over; hands on what happens meanwhile.

    Nothing is concluded while the API server or the store is away. A driver that is gone without having said so ends
    the watch: nothing would bring it back. A job that has not begun in time is deleted, so that it begins no more.
    """

    def __init__(self, api: Api, name: str, options: Mapping[str, Any] | None, on_event: OnEvent) -> None:
        self._api, self._name, self._options, self._on_event = api, name, options, on_event
        self._server, self._store = Patient(on_event, eager=(Away,)), Patient(on_event)
        self._clock, self._told, self._events_told = _Clock(), "", 0
        self._state: JobState | None = None
        self._is_unwatched = False

    def look(self) -> tuple[Outcome, JobState] | None:
        """The job's end and how it stands; None as long as there is hope."""
        fresh = self._server.ask(look, self._api, self._name, self._state)
        state = self._state = fresh or self._state
        if state is None:
            return None
        self._told = _tell_state(state, self._told, self._on_event)
        found = self._store.ask(ending_of, state, self._options)
        told = self._store.ask(_tell_events, state, self._options, self._events_told, self._on_event)
        self._events_told = told or self._events_told
        if found is not None and found.is_over and found.state != "lost":
            return found, state
        why = self._clock.has_run_out(state if fresh else None, found)
        # Asked for a reason only: an answer without a question to the server would end its being away.
        ended = self._server.ask(_give_up, self._api, why, state, self._options) if why else None
        return (ended, state) if ended is not None else None

    def wait(self) -> None:
        """Return when there may be something new to see."""
        if not self._server.ask(_wait_for_change, self._api, self._name, self._tell_unwatched):
            time.sleep(PAUSE)

    def _tell_unwatched(self, refused: Refused) -> None:
        """Hand on, once, that pods may be listed but not watched."""
        if not self._is_unwatched:
            self._is_unwatched = True
            reason = f"changes cannot be watched, so the job is looked at every {PAUSE:g} s: {refused}"
            self._on_event({"event": "waiting", "reason": reason})


def follow(api: Api, name: str, options: Mapping[str, Any] | None, on_event: OnEvent) -> tuple[Outcome, JobState]:
    """Watch a job to its end: how that was, by its record and its manifest, and how the job stands."""
    watch = Watch(api, name, options, on_event)
    while (ended := watch.look()) is None:
        watch.wait()
    return ended


def ending_of(state: JobState, options: Mapping[str, Any] | None) -> Outcome:
    """The outcome of a job's run: what storage proves, or what its driver's pod tells where this machine has no access.

    A path is a folder of the pods' volumes.
    """
    if not files.is_local(state.directory):
        return outcome_of(state.directory, options, state.run_id)
    if state.exit_code is None:
        return Outcome("unknown", f"{state.directory} is in the pods' volumes, and the driver has not ended", None)
    known = {lifecycle.of(name).exit_code: name for name in ("finished", "cancelled", "interrupted")}
    reason = f"the driver's pod ended with exit code {state.exit_code}; its log and {state.directory} tell more"
    return Outcome(known.get(state.exit_code, "failed"), reason if state.exit_code else "", None, state.exit_code)


def look(api: Api, name: str, known: JobState | None) -> JobState:
    """The state of a job. One that was known and is deleted is as far as its pods are: they end some time after it."""
    try:
        return state_of(api, name)
    except NoSuchJob:
        if known is None:
            raise
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name}")
    metadata = {"name": name, "annotations": {OUTPUT: known.directory, RUN_ID: known.run_id}}
    return summarise({"metadata": metadata, "status": {"jobStatus": "deleted"}}, pods)


class _Clock:
    """The time that a job has been without hope, and the kind of it."""

    def __init__(self) -> None:
        self._why, self._since = "", 0.0

    def has_run_out(self, state: JobState | None, found: Outcome | None) -> str:
        """Why to wait no longer; empty: there is reason to. state, found: as they are now; None where nobody knows."""
        why, patience = _hopeless(state, found) if state is not None and found is not None else ("", 0.0)
        if why != self._why:
            self._why, self._since = why, time.monotonic()
        return why if time.monotonic() - self._since > patience else ""


def _hopeless(state: JobState, found: Outcome) -> tuple[str, float]:
    """The reason against a good end, and how many seconds that may last."""
    if state.driver_is_gone:
        return "gone", LAST_WORD
    if state.driver == "missing":
        return "unmade", PATIENCE
    if state.driver == "Pending" and state.start_timeout:
        return "pending", state.start_timeout
    return ("silent", SILENCE) if found.state == "lost" else ("", 0.0)


def _give_up(api: Api, why: str, state: JobState, options: Mapping[str, Any] | None) -> Outcome | None:
    """The outcome of a job for which there is no hope; None where it has moved on.

    One that has not begun is deleted, unless it has moved since it was looked at: it must not begin behind the back of
    somebody who was told that it does not, and submits it again.
    """
    reason = _why_lost(state, why)
    if why in ("unmade", "pending"):
        if not api.delete("DaskJob", state.name, state.version):
            return None
        error = {"type": "NeverStarted", "message": reason, "exit_code": ClusterError.exit_code}
        if not files.is_local(state.directory):
            runs.settle_in(state.directory, options, state.run_id, "failed", lifecycle.CANCELLER, error)
    return Outcome("lost", reason, None)


def _tell_events(state: JobState, options: Mapping[str, Any] | None, told: int, on_event: OnEvent) -> int:
    """Hand on the events of the job's run beyond those that were told; how many are told now."""
    if files.is_local(state.directory):
        return told
    events = [event for event in read_events(state.directory, options) if state.run_id in ("", event["run_id"])]
    for event in events[told:]:
        on_event(event)
    return max(told, len(events))


def settle(api: Api, state: JobState, on_event: OnEvent) -> JobState:
    """Wait until the operator has noted the end of a job that is over; how the job stands then.

    The operator deletes the cluster and says how the driver's pod ended, in this order, and loses its thread where
    somebody deletes the cluster before it does. So nothing is deleted here but a job whose driver's pod is gone without
    an end that the operator could see; what belongs to it goes with it, by owner references.
    """
    patient, deadline = Patient(on_event, answered=True), time.monotonic() + SETTLING
    while not state.is_noted and time.monotonic() < deadline:
        if state.driver == "missing" and state.driver_is_gone:
            patient.ask(api.delete, "DaskJob", state.name)
        time.sleep(PAUSE)
        state = patient.ask(look, api, state.name, state) or state
    return state


def _tell_state(state: JobState, told: str, on_event: OnEvent) -> str:
    """An event where the state changed since the last one."""
    event = {
        "event": "kubernetes", "name": state.name, "status": state.status, "driver": state.driver,
        "workers": state.workers, "problems": state.problems,
    }  # fmt: skip
    if repr(event) != told:
        on_event(event)
    return repr(event)


def _why_lost(state: JobState, why: str) -> str:
    what = {
        "unmade": f"has no driver's pod after {PATIENCE:.0f} s: the Dask operator does not run, or may not make it",
        "pending": f"has a driver's pod that did not start within {state.start_timeout} s (kubernetes.start_timeout)",
        "silent": "has a driver that was not heard of for long, though its pod is there: its node may be out of reach",
        "gone": {"missing": "has no driver's pod any more", "Failed": "lost its driver"}.get(
            state.driver, "ended without a record"
        ),
    }[why]
    reasons = f": {'; '.join(state.problems)}" if state.problems else ""
    deleted = " It is deleted, so that it does not start later." if why in ("unmade", "pending") else ""
    job = f"DaskJob {state.name} ({state.status or 'no status'})"
    return f"{job} {what}{reasons}.{deleted} Submit the job again: it resumes"


def _wait_for_change(api: Api, name: str, on_refusal: Callable[[Refused], None]) -> bool:
    """Return (true) when one of the job's pods changed, or after some seconds: the record changes without them.

    on_refusal: called where pods can be listed but not watched, as some Roles have it; then after a pause.
    """
    labels = f"{CLUSTER_LABEL}={name}"
    started = time.monotonic()
    _, version = api.list("Pod", labels=labels)
    try:
        for _ in api.watch("Pod", labels, version, _WINDOW):
            break
    except Refused as refused:
        api.list("Pod", labels=labels)  # refused too where the server is just starting: that is sat out
        on_refusal(refused)
    time.sleep(max(0.0, min(PAUSE, _WINDOW - (time.monotonic() - started))))
    return True
