"""A DaskJob run without Kubernetes: the pods that the operator would make, their containers as local processes.

Every container runs its own arguments with its own environment. What a cluster would give is replaced by what a machine
has: volumes by folders, Service names by 127.0.0.1, fixed ports by free ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.operator_parts import built, check_crd

Manifest = dict[str, Any]
ENTRY_POINTS = {"dfm": ["-m", "dfm"], "dask": ["-m", "dask"], "python": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class StandIn:
    """Runs the objects of one job; `files`: contents of ConfigMaps and Secrets that the job's own objects lack."""

    folder: Path
    objects: list[Manifest]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    worker_specs: list[Manifest] = field(default_factory=list)
    _started: dict[str, tuple[list[str], dict[str, str]]] = field(default_factory=dict)

    def start(self) -> None:
        """Create the pods in the operator's order: scheduler, workers, and the driver beside them."""
        job = next(body for body in self.objects if body["kind"] == "DaskJob")
        check_crd(job)
        made = built(job)
        service = next(body for body in made if body["kind"] == "Service")
        self.ports = {str(port["port"]): free_port() for port in service["spec"]["ports"]}
        scheduler, worker = (body for body in made if body["kind"] == "Deployment")
        self._start_pod("scheduler", scheduler["spec"]["template"]["spec"])
        for number in range(job["spec"]["cluster"]["spec"]["worker"]["replicas"]):
            self.ports["8788"] = free_port()
            self.worker_specs.append(worker["spec"]["template"]["spec"])
            self._start_pod(f"worker-{number}", worker["spec"]["template"]["spec"])
        self.driver_spec = next(body for body in made if body["kind"] == "Pod")["spec"]
        self._start_pod("driver", self.driver_spec)

    def wait(self, seconds: float = 300) -> int:
        """The driver's exit code."""
        try:
            return self.processes["driver"].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log("driver")) from None

    def exec(self, name: str, pod: Manifest, command: list[str]) -> str:
        """Run a command in a container, as its preStop hook would be; its output."""
        container = pod["containers"][0]
        mounts = self._mounts(name, pod, container)
        environment = self._environment(name, container, mounts)
        done = subprocess.run(
            self._command(command, environment, mounts), env=environment, cwd=self.folder / name, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def probe(self, name: str, pod: Manifest, kind: str) -> bool:
        """Whether a shell probe of a container succeeds."""
        container = pod["containers"][0]
        shell, option, condition = container[kind]["exec"]["command"]
        for path, folder in self._mounts(name, pod, container).items():
            condition = condition.replace(path, str(folder))
        return subprocess.run([shell, option, condition], timeout=30).returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # a pod ends with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_driver_once(self) -> int:
        """Kill the training process below the driver's supervisor, as the kernel does when memory runs out."""
        deadline = time.monotonic() + 60
        supervisor = self.processes["driver"].pid
        while time.monotonic() < deadline:
            children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
            if children:
                os.kill(int(children[0]), signal.SIGKILL)
                return int(children[0])
            time.sleep(0.1)
        raise AssertionError("the driver has no training process")

    # ------------------------------------------------------------------------------------------------------

    def _start_pod(self, name: str, pod: Manifest) -> None:
        (self.folder / name).mkdir(parents=True)
        container = pod["containers"][0]
        mounts = self._mounts(name, pod, container)
        environment = self._environment(name, container, mounts)
        self._started[name] = self._command(container["args"], environment, mounts), environment
        self.restart(name)

    def restart(self, name: str) -> None:
        """Start a pod's container, again where it has ended."""
        command, environment = self._started[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, cwd=self.folder / name, stdout=log, stderr=log, start_new_session=True
            )

    def _environment(self, name: str, container: Manifest, mounts: Mapping[str, Path]) -> dict[str, str]:
        given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        if "DASK_WORKER_NAME" in given:
            given["DASK_WORKER_NAME"] += f"-{name}"
        inherited = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        return inherited | {key: self._translated(value, mounts) for key, value in given.items()} | {**self.environment}

    def _mounts(self, name: str, pod: Manifest, container: Manifest) -> dict[str, Path]:
        """Local folders by mount path, filled as the volumes say."""
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "persistentVolumeClaim" in volume or "hostPath" in volume:  # a folder that all pods share
                mounts[mount["mountPath"]] = Path(mount["mountPath"])
                continue
            folder = self.folder / name / mount["name"]
            folder.mkdir(exist_ok=True)
            source = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
            for file, text in self._contents(source).items() if source else ():
                (folder / file).write_text(text)
            mounts[mount["mountPath"]] = folder
        return mounts

    def _contents(self, source: str) -> Mapping[str, str]:
        for body in self.objects:
            if body["kind"] in ("ConfigMap", "Secret") and body["metadata"]["name"] == source:
                found: Mapping[str, str] = body.get("data") or body["stringData"]
                return found
        return self.files[source]

    def _command(self, arguments: list[str], environment: Mapping[str, str], mounts: Mapping[str, Path]) -> list[str]:
        def expand(text: str) -> str:
            return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], text)

        program, *rest = [expand(argument) for argument in arguments]
        return [sys.executable, *ENTRY_POINTS[program], *(self._translated(argument, mounts) for argument in rest)]

    def _translated(self, text: str, mounts: Mapping[str, Path]) -> str:
        for path in sorted(mounts, key=len, reverse=True):
            if text == path or text.startswith(path + "/"):
                return str(mounts[path]) + text[len(path) :]
        text = re.sub(r"[-\w]+-scheduler(\.[-\w]+\.svc\.cluster\.local)?(?=:)", "127.0.0.1", text)
        return re.sub(r"(^|:)(8786|8787|8788)$", lambda found: f"{found[1]}{self.ports[found[2]]}", text)
