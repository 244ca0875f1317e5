"""An API server whose DaskJobs run: what operator, kubelets and garbage collector do, done with local processes."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.api_server import ApiServer, Manifest, api_server
from tests.support.stand_in import StandIn

NAMESPACE = "/namespaces/team"
JOBS = f"/apis/kubernetes.dask.org/v1{NAMESPACE}/daskjobs"
CLUSTERS = f"/apis/kubernetes.dask.org/v1{NAMESPACE}/daskclusters"
PODS = f"/api/v1{NAMESPACE}/pods"
OPERATOR_SECONDS = 1.0
"""What the operator takes to see the end of a driver's pod; longer than a follower needs to see the end of a run."""


@dataclass
class Miniature:
    """One namespace. complaints: what the operator could not do, as it would log it."""

    server: ApiServer
    folder: Path
    environment: Mapping[str, str]
    running: dict[str, StandIn] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def live(self) -> None:
        """Do what a cluster does, until it is over."""
        ended: dict[str, float] = {}
        while not self.over.wait(0.05):
            for name, job in self.jobs().items():
                if name not in self.running and self.is_whole(name):
                    self.start(name, job)
            for name, stand_in in list(self.running.items()):
                if name not in self.jobs():
                    self.running.pop(name).stop()
                    continue
                code = stand_in.processes["driver"].poll()
                if code is None:
                    self.restart_containers(stand_in)
                    continue
                self.put_driver(name, "Failed" if code else "Succeeded", code)
                since = ended.setdefault(name, time.monotonic())
                if time.monotonic() - since > OPERATOR_SECONDS:
                    self.note_end(name, "Failed" if code else "Successful")

    def jobs(self) -> dict[str, Manifest]:
        with self.server.lock:
            return {path.rsplit("/", 1)[-1]: body for path, body in self.server.objects.items() if JOBS in path}

    def is_whole(self, name: str) -> bool:
        """Whether the job file is there: until then a kubelet waits with the container."""
        with self.server.lock:
            return any(body["kind"] == "ConfigMap" and name in path for path, body in self.server.objects.items())

    def start(self, name: str, job: Manifest) -> None:
        with self.server.lock:
            objects = [job, *(body for body in self.server.objects.values() if body["kind"] == "ConfigMap")]
        stand_in = StandIn(self.folder / name, objects, environment=self.environment)
        self.running[name] = stand_in
        stand_in.start()
        labels = {"dask.org/cluster-name": name}
        self.server.put(CLUSTERS, {"kind": "DaskCluster", "metadata": {"name": name, "labels": labels}})
        self.put_driver(name, "Running")
        self.say(name, "Running")

    def put_driver(self, name: str, phase: str, code: int | None = None) -> None:
        labels = {"dask.org/cluster-name": name, "dask.org/component": "job-runner"}
        state = (
            {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}} if phase != "Running" else {}
        )
        status = {"phase": phase, "containerStatuses": [{"name": "driver", "state": state}]}
        present = self.server.objects.get(f"{PODS}/{name}-runner", {}).get("status", {})
        if present.get("phase") != phase and name in self.jobs():
            self.server.put(
                PODS, {"kind": "Pod", "metadata": {"name": f"{name}-runner", "labels": labels}, "status": status}
            )

    def restart_containers(self, stand_in: StandIn) -> None:
        """What a Deployment keeps alive comes back."""
        for name, process in list(stand_in.processes.items()):
            if name != "driver" and process.poll() is not None:
                stand_in.restart(name)

    def note_end(self, name: str, status: str) -> None:
        """The operator's handler: it deletes the cluster, and says so in the DaskJob only where that was possible."""
        if self.jobs()[name].get("status", {}).get("jobStatus") == status:
            return
        try:
            self.server.delete(f"{CLUSTERS}/{name}")
        except KeyError:
            self.complaints.append(f"Could not find DaskCluster {name}")
            return
        for part, process in self.running[name].processes.items():
            if part != "driver":
                process.terminate()
        self.say(name, status)

    def say(self, name: str, status: str) -> None:
        if (job := self.jobs().get(name)) is not None:
            self.server.put(JOBS, {**job, "status": {"jobStatus": status}})


@contextlib.contextmanager
def miniature(folder: Path, kubeconfig: Path, environment: Mapping[str, str]) -> Iterator[Miniature]:
    """A cluster that lives as long as the block; its processes end with it."""
    with api_server(kubeconfig) as server:
        cluster = Miniature(server, folder, environment)
        thread = threading.Thread(target=cluster.live)
        thread.start()
        try:
            yield cluster
        finally:
            cluster.over.set()
            thread.join()
            for stand_in in cluster.running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    stand_in.stop()
