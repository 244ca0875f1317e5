"""The jobs of a namespace: how they stand, and which of them are to go because they ended long ago."""

from __future__ import annotations

import datetime
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfm.errors import ClusterError
from dfm.kubernetes.api import Api
from dfm.kubernetes.follow import CLUSTER_LABEL, DRIVER, JobState, component_of, summarise
from dfm.kubernetes.manifest import JOB, MANAGED, TTL, Manifest

logger = logging.getLogger(__name__)
_LEFT_ALONE = 600.0
"""Seconds that an object without its DaskJob is left alone: `kubectl apply` may not have come to the DaskJob yet."""
_BESIDE = ("ConfigMap", "PodDisruptionBudget")
"""What a job has beside its DaskJob; applied by kubectl, nothing owns it."""


@dataclass(frozen=True)
class Listed:
    """A job of the namespace. Times are ISO 8601, "" where not reached; ttl: seconds after its end, 0: it stays."""

    state: JobState
    created: str
    ended: str
    ttl: int

    def is_due(self, now: datetime.datetime, older_than: float | None) -> bool:
        """Whether it ended long enough ago; older_than: seconds, in place of its own ttl."""
        limit = self.ttl if older_than is None else older_than
        if not self.ended or (older_than is None and not self.ttl):
            return False
        return (now - datetime.datetime.fromisoformat(self.ended)).total_seconds() >= limit


def jobs_in(api: Api) -> list[Listed]:
    """The jobs that dfm made in the namespace, newest first."""
    jobs, _ = api.list("DaskJob", labels=MANAGED)
    pods = defaultdict(list)
    for pod in api.list("Pod", labels=MANAGED)[0] if jobs else []:
        pods[pod["metadata"]["labels"].get(CLUSTER_LABEL, "")].append(pod)
    found = [_listed(job, pods[job["metadata"]["name"]]) for job in jobs]
    return sorted(found, key=lambda each: each.created, reverse=True)


def _listed(job: Manifest, pods: Sequence[Manifest]) -> Listed:
    state, metadata = summarise(job, list(pods)), job["metadata"]
    created = str(metadata.get("creationTimestamp", ""))
    ended = ""
    if state.is_noted or state.driver_is_gone:
        ended = str(job.get("status", {}).get("endTime") or _finished(pods) or created)
    return Listed(state, created, ended, int(metadata.get("annotations", {}).get(TTL, 0)))


def _finished(pods: Sequence[Manifest]) -> str:
    """When the driver's container ended."""
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", []) if component_of(pod) == DRIVER else []:
            if ended := container.get("state", {}).get("terminated"):
                return str(ended.get("finishedAt") or "")
    return ""


def prune(api: Api, older_than: float | None = None, dry_run: bool = False) -> list[str]:
    """Delete jobs that ended longer ago than their time to live, and what is left of jobs that are gone; their names.

    What belongs to a DaskJob (cluster, driver's pod and its log, job file, disruption budget) goes with it. Results in
    storage stay. A job that moved since it was looked at stays too.
    """
    now, gone = datetime.datetime.now(datetime.UTC), []
    listed = jobs_in(api)
    for each in listed:
        if each.is_due(now, older_than) and (dry_run or api.delete("DaskJob", each.state.name, each.state.version)):
            gone.append(f"DaskJob {each.state.name}")
    names = {each.state.name for each in listed}
    for kind in _BESIDE:
        for body in api.list(kind, labels=MANAGED)[0]:
            if _is_orphan(body["metadata"], names, now):
                gone.append(f"{kind} {body['metadata']['name']}")
                if not dry_run:
                    api.delete(kind, body["metadata"]["name"])
    return gone


def tidy(api: Api) -> None:
    """Prune, as who submits a job does; where that is not allowed, or the server does not answer, it is left to others.

    Kubernetes deletes finished Jobs of its own by themselves, but no DaskJobs.
    """
    try:
        for name in prune(api):
            logger.info("%s has outlived its kubernetes.ttl_after_finished and is deleted", name)
    except ClusterError as error:
        logger.warning("jobs that ended long ago are not pruned: %s", error)


def _is_orphan(metadata: Mapping[str, Any], jobs: set[str], now: datetime.datetime) -> bool:
    """Whether an object belonged to a DaskJob that is gone, and nothing else will delete it."""
    job = metadata.get("labels", {}).get(JOB, "")
    created = metadata.get("creationTimestamp", "")
    if not job or job in jobs or metadata.get("ownerReferences") or not created:
        return False
    return (now - datetime.datetime.fromisoformat(created)).total_seconds() > _LEFT_ALONE
