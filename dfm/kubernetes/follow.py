"""The state of a job on Kubernetes: read from its DaskJob, its pods, and, for the truth, the record in its output.

The operator's word is not enough: a DaskJob may stay Running for ever, its driver's pod may be gone unnoticed, and it
tells neither reasons nor exit codes (deploy/README.md, traps).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfm.errors import ClusterError
from dfm.kubernetes.api import Api, NotThere
from dfm.kubernetes.manifest import OUTPUT, RUN_ID, Manifest
from dfm.runs.outcome import Outcome, outcome_of
from dfm.runs.record import read_events

CLUSTER_LABEL, COMPONENT_LABEL = "dask.org/cluster-name", "dask.org/component"
DRIVER = "job-runner"
PATIENCE = 120.0
"""Seconds that the operator gets to make a driver's pod, and a driver whose pod is gone to be heard of."""
_WINDOW = 5
OnEvent = Callable[[dict[str, Any]], None]


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
        """Whether no driver can finish the job any more."""
        return self.driver in ("missing", "Failed", "Succeeded")


def state_of(api: Api, name: str) -> JobState:
    """The state of a DaskJob. ClusterError where there is none of that name."""
    try:
        job = api.get("DaskJob", name)
    except NotThere:
        raise ClusterError(
            f"there is no DaskJob {name!r} in namespace {api.namespace!r}; see `dfm list`, or name its output directory"
        ) from None
    pods, _ = api.list("Pod", labels=f"{CLUSTER_LABEL}={name}")
    return summarise(job, pods)


def summarise(job: Manifest, pods: list[Manifest]) -> JobState:
    """The state of a job, from a DaskJob and its pods together."""
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


def follow(api: Api, name: str, options: Mapping[str, Any] | None, on_event: OnEvent) -> Outcome:
    """Hand on what happens to a job until it is over; how it ended, by its record and its manifest.

    A driver that is gone without having said so ends the wait too, after PATIENCE: nothing would bring it back.
    """
    told, events_told, gone_since = "", 0, 0.0
    directory = run_id = ""
    while True:
        try:
            state = state_of(api, name)
            directory, run_id = state.directory or directory, state.run_id or run_id
        except ClusterError:
            if not directory:
                raise
            state = JobState(name, "deleted", directory, run_id, "missing", 0)
        told = _tell_state(state, told, on_event)
        found = outcome_of(directory, options, run_id)
        events = [event for event in read_events(directory, options) if run_id in ("", event["run_id"])]
        for event in events[events_told:]:
            on_event(event)
        events_told = max(events_told, len(events))
        if found.is_over and found.state != "lost":
            return found
        gone_since = (gone_since or time.monotonic()) if state.driver_is_gone else 0.0
        if gone_since and time.monotonic() - gone_since > PATIENCE:
            return Outcome("lost", _why_lost(state), found.record)
        _wait_for_change(api, name)


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


def _wait_for_change(api: Api, name: str) -> None:
    """Return when one of the job's pods changed, or after some seconds: the record changes without them."""
    labels = f"{CLUSTER_LABEL}={name}"
    started = time.monotonic()
    _, version = api.list("Pod", labels=labels)
    for _ in api.watch("Pod", labels, version, _WINDOW):
        break
    time.sleep(max(0.0, min(1.0, _WINDOW - (time.monotonic() - started))))
