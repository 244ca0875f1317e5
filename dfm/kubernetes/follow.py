"""How a job on Kubernetes stands: read from its DaskJob, its pods, and, for the truth, the record in its output.

The operator's word is not enough: a DaskJob may stay Running for ever, its driver's pod may be gone unnoticed, and it
tells neither reasons nor exit codes (deploy/README.md, traps).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from dfm.errors import ClusterError
from dfm.kubernetes.api import Api, Away, NotThere, Refused
from dfm.kubernetes.manifest import OUTPUT, RUN_ID, Manifest
from dfm.runs.outcome import Outcome, outcome_of
from dfm.runs.record import read_events

CLUSTER_LABEL, COMPONENT_LABEL = "dask.org/cluster-name", "dask.org/component"
DRIVER = "job-runner"
PATIENCE = 120.0
"""Seconds that the operator gets to make a driver's pod."""
LAST_WORD = 3.0
"""Seconds in which the last word of a driver whose pod has ended must be readable in storage."""
SILENCE = 600.0
"""Seconds after which a driver that is silent counts as lost though its pod is there: its node is out of reach."""
OUTAGE, REFUSALS = 900.0, 120.0
"""Seconds for which an API server may be away; in which it may refuse what it allowed before."""
SETTLING = 60.0
"""Seconds that the operator gets to take note of a driver's end and to delete the cluster."""
PAUSE = 1.0
_WINDOW = 5
_UNMADE = ("", "JobCreated")
"""What a DaskJob says as long as the operator has not made the driver's pod."""
_NOTED = ("Successful", "Failed", "deleted")
"""What it says once the operator has seen the driver's end, and has deleted the cluster."""
OnEvent = Callable[[dict[str, Any]], None]
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class NoSuchJob(ClusterError):
    """There is no DaskJob of a name."""


@dataclass(frozen=True)
class JobState:
    """A job on Kubernetes now. problems: what keeps its pods from running, one line each."""

    name: str
    status: str
    directory: str
    run_id: str
    driver: str
    workers: int
    problems: list[str] = field(default_factory=list)

    @property
    def driver_is_gone(self) -> bool:
        """Whether there was a driver and is none any more: nothing brings another one."""
        return self.driver in ("Failed", "Succeeded") or (self.driver == "missing" and self.status not in _UNMADE)

    @property
    def is_noted(self) -> bool:
        """Whether the operator has seen the driver's end and is done with the job."""
        return self.status in _NOTED


def state_of(api: Api, name: str) -> JobState:
    """The state of a DaskJob. NoSuchJob where there is none of that name."""
    try:
        job = api.get("DaskJob", name)
    except NotThere:
        raise NoSuchJob(
            f"there is no DaskJob {name!r} in namespace {api.namespace!r}; see `dfm list`, or name its output directory"
        ) from None
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name}")
    return summarise(job, pods)


def summarise(job: Manifest, pods: list[Manifest]) -> JobState:
    """What a DaskJob and its pods tell together."""
    metadata = job["metadata"]
    drivers = [pod for pod in pods if _component(pod) == DRIVER]
    workers = [pod for pod in pods if _component(pod) == "worker" and pod.get("status", {}).get("phase") == "Running"]
    return JobState(
        metadata["name"],
        job.get("status", {}).get("jobStatus", ""),
        metadata.get("annotations", {}).get(OUTPUT, ""),
        metadata.get("labels", {}).get(RUN_ID, ""),
        drivers[0].get("status", {}).get("phase", "Pending") if drivers else "missing",
        len(workers),
        [line for pod in pods for line in problems_of(pod)],
    )


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


def _component(pod: Manifest) -> str:
    return str(pod["metadata"].get("labels", {}).get(COMPONENT_LABEL, ""))


# --- to the end ------------------------------------------------------------------------------------------


class Patient:
    """Asks an API server that may be away, or not quite up yet, in the course of a long wait."""

    def __init__(self, on_event: OnEvent, answered: bool = False) -> None:
        self._on_event = on_event
        self._since, self._answered = 0.0, answered

    def ask(self, question: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs) -> Answer | None:
        """The answer to a call; None where the server has none at present, its error where that lasts.

        A refusal is taken for passing where the server has answered before, or was away until just now.
        """
        try:
            answer = question(*given, **named)
        except (Away, Refused) as error:
            if isinstance(error, Refused) and not (self._answered or self._since):
                raise
            now = time.monotonic()
            if not self._since:
                self._since = now
                self._on_event({"event": "kubernetes_away", "reason": str(error)})
            if now - self._since > (OUTAGE if isinstance(error, Away) else REFUSALS):
                raise
            return None
        self._since, self._answered = 0.0, True
        return answer


def follow(api: Api, name: str, options: Mapping[str, Any] | None, on_event: OnEvent) -> tuple[Outcome, JobState]:
    """Hand on what happens to a job until it is over; how it ended, by its record and its manifest, and how it stands.

    Nothing is concluded while the API server is away. A driver that is gone without having said so ends the wait too:
    nothing would bring it back.
    """
    patient, clock = Patient(on_event), _Clock()
    state: JobState | None = None
    told, events_told = "", 0
    while True:
        fresh = patient.ask(_look, api, name, state)
        state = fresh or state
        if state is not None:
            told = _tell_state(state, told, on_event)
            found = outcome_of(state.directory, options, state.run_id)
            events_told = _tell_events(state, options, events_told, on_event)
            if found.is_over and found.state != "lost":
                return found, state
            if clock.has_run_out(state if fresh else None, found):
                return Outcome("lost", _why_lost(state), found.record), state
        if not patient.ask(_wait_for_change, api, name):
            time.sleep(PAUSE)


def _look(api: Api, name: str, known: JobState | None) -> JobState:
    """The state of a job. One that was known and is deleted is as far as its pods are: they end some time after it."""
    try:
        return state_of(api, name)
    except NoSuchJob:
        if known is None:
            raise
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name}")
    metadata = {"name": name, "annotations": {OUTPUT: known.directory}, "labels": {RUN_ID: known.run_id}}
    return summarise({"metadata": metadata, "status": {"jobStatus": "deleted"}}, pods)


class _Clock:
    """How long a job has been without hope."""

    def __init__(self) -> None:
        self._why, self._since = "", 0.0

    def has_run_out(self, state: JobState | None, found: Outcome) -> bool:
        """Whether that is longer than it may last. state: as it is now; None where nobody knows, which begins anew."""
        why, patience = "", 0.0
        if state is None:
            pass
        elif state.driver_is_gone:
            why, patience = "gone", LAST_WORD
        elif state.driver == "missing":
            why, patience = "unmade", PATIENCE
        elif found.state == "lost":
            why, patience = "silent", SILENCE
        if why != self._why:
            self._why, self._since = why, time.monotonic()
        return bool(why) and time.monotonic() - self._since > patience


def _tell_events(state: JobState, options: Mapping[str, Any] | None, told: int, on_event: OnEvent) -> int:
    """Hand on the events of the job's run beyond those that were told; how many are told now."""
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
        state = patient.ask(_look, api, state.name, state) or state
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


def _why_lost(state: JobState) -> str:
    what = {"missing": "has no driver's pod", "Failed": "lost its driver"}.get(state.driver, "ended without a record")
    reasons = "; ".join(state.problems) or "its events tell more: kubectl get events"
    return f"DaskJob {state.name} ({state.status or 'no status'}) {what}: {reasons}. Submit the job again: it resumes"


def _wait_for_change(api: Api, name: str) -> bool:
    """Return (true) when one of the job's pods changed, or after some seconds: the record changes without them."""
    labels = f"{CLUSTER_LABEL}={name}"
    started = time.monotonic()
    _, version = api.list("Pod", labels=labels)
    for _ in api.watch("Pod", labels, version, _WINDOW):
        break
    time.sleep(max(0.0, min(PAUSE, _WINDOW - (time.monotonic() - started))))
    return True
