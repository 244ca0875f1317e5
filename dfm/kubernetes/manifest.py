"""The objects of a job: its job file, its DaskJob and what protects its driver, as plain dicts.

Reasons for what looks odd are traps of the operator and of Kubernetes: see deploy/README.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dfm.errors import SettingsError
from dfm.kubernetes.sizing import Sizing, quantity
from dfm.settings.constraints import parse_bytes
from dfm.settings.job import Job
from dfm.settings.tables import ClusterSettings, KubernetesSettings
from dfm.settings.toml import to_toml

Manifest = dict[str, Any]
GROUP, VERSION = "kubernetes.dask.org", "v1"
RUN_ID, OUTPUT, FINGERPRINT, JOB = "dfm/run-id", "dfm/output", "dfm/job-fingerprint", "dfm/job"
START_TIMEOUT, TTL = "dfm/start-timeout", "dfm/ttl-after-finished"
MANAGED = "app.kubernetes.io/managed-by=dfm"
"""Selects what dfm made."""
LONGEST_NAME = 53
"""A longer one leaves no room for "-scheduler": its cluster fails, and the driver starts all the same."""
USER = 10001
_LARGEST_FILE = 1 << 20
"""Bytes that a ConfigMap may hold."""
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""A Service's name, as NAME-scheduler is one, begins with a letter before Kubernetes 1.36 (RFC 1035)."""
_TLS = "/etc/dfm-tls"
_FOR_EVER = 30 * 86400
_HEARTBEAT = "/tmp/dfm-heartbeat"
_API_ROUTES = [
    *("distributed.http.scheduler.prometheus", "distributed.http.scheduler.info", "distributed.http.scheduler.json"),
    *(
        "distributed.http.health",
        "distributed.http.proxy",
        "distributed.http.statics",
        "distributed.http.scheduler.api",
    ),
]
"""Dask's own routes and the one by which the operator retires workers; without it scaling down loses their data."""


@dataclass(frozen=True)
class Submission:
    """One job on its way to Kubernetes. An empty run_id: the driver makes one itself."""

    name: str
    namespace: str
    job: Job
    sizing: Sizing
    run_id: str = ""

    @property
    def settings(self) -> KubernetesSettings:
        """The job's [kubernetes]."""
        return self.job.kubernetes

    @property
    def patience(self) -> int:
        """Seconds that its pods may take to start."""
        return self.settings.start_timeout or _FOR_EVER


def name_for(stem: str, run_id: str) -> str:
    """A name of a DaskJob, unique to the run."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    begun = cleaned if cleaned[:1].isalpha() else f"dfm-{cleaned}"
    return f"{begun[: LONGEST_NAME - len(run_id) - 1].strip('-')}-{run_id}"


def check_name(name: str) -> None:
    """SettingsError where the operator would choke on a name."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise SettingsError(
            f"{name!r} is no name for a DaskJob: at most {LONGEST_NAME} of a-z, 0-9 and -, beginning with a letter, as "
            "clusters before Kubernetes 1.36 demand of its scheduler's Service, and ending with a letter or digit; "
            "choose another --name"
        )


def objects(submission: Submission) -> list[Manifest]:
    """All objects of a job: the job file, the DaskJob, the protection of its driver and scheduler."""
    check_name(submission.name)
    return [job_file(submission), dask_job(submission), disruption_budget(submission)]


def owned_by(body: Manifest, owner: Manifest) -> Manifest:
    """The object as one that is deleted with its owner, which the server has stored."""
    meta = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [reference]}}


def _own_name(submission: Submission, what: str) -> str:
    """The name of an object beside the DaskJob, which no other run's object has: who meets it has made it."""
    mark = hashlib.sha256(submission.run_id.encode()).hexdigest()[:8]
    return f"{submission.name}-{what}" + (f"-{mark}" if submission.run_id else "")


def job_file(submission: Submission) -> Manifest:
    """The job file for the driver. It holds no secrets: storage options with such are refused (dfm.storage).

    SettingsError where it is too large for a ConfigMap.
    """
    text = to_toml(_for_the_cluster(submission.job).to_dict(secrets=True))
    data = submission.job.data
    if (size := len(text.encode())) > _LARGEST_FILE:
        raise SettingsError(
            f"the job file has {size:,} bytes, of which Kubernetes takes {_LARGEST_FILE:,}: data.train and "
            f"data.validation name {len(data.train) + len(data.validation):,} paths; name folders "
            "or globs (s3://clicks/day=*) in their place"
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(submission, _own_name(submission, "job")),
        "data": {"job.toml": text},
    }


def _for_the_cluster(job: Job) -> Job:
    """The job as the driver reads it in its pod: on the cluster of its DaskJob, whose address is in the environment."""
    cluster = replace(job.cluster, scheduler="", factory="", factory_options={}, tls_ca="", tls_cert="", tls_key="")
    return replace(job, cluster=replace(cluster, cache="dfm-cache"))


def dask_job(submission: Submission) -> Manifest:
    """The DaskJob: the driver's pod and its Dask cluster."""
    name = submission.name
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "DaskJob",
        "metadata": _metadata(submission, name),
        "spec": {
            "job": {"spec": _driver_pod(submission)},
            "cluster": {
                "spec": {
                    "worker": {"replicas": submission.sizing.workers, "spec": _worker_pod(submission)},
                    "scheduler": {"spec": _scheduler_pod(submission), "service": _service(name)},
                }
            },
        },
    }


def disruption_budget(submission: Submission) -> Manifest:
    """Nodes are not drained below the driver, which nothing recreates, and the scheduler, with whom results are lost.

    Both are counted together: while the scheduler is being made, and after the driver's end, neither may be evicted.
    """
    selector = {
        "matchLabels": {"dask.org/cluster-name": submission.name},
        "matchExpressions": [{"key": "dask.org/component", "operator": "In", "values": ["job-runner", "scheduler"]}],
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(submission, _own_name(submission, "driver")),
        "spec": {"minAvailable": 2, "selector": selector},
    }


def _metadata(submission: Submission, name: str) -> Manifest:
    annotations = {
        **submission.settings.annotations,
        OUTPUT: submission.job.output.directory, FINGERPRINT: submission.job.fingerprint(),
        START_TIMEOUT: str(submission.settings.start_timeout), TTL: str(submission.settings.ttl_after_finished),
    }  # fmt: skip
    own = {"app.kubernetes.io/name": "dfm", "app.kubernetes.io/managed-by": "dfm", JOB: submission.name}
    labels = {**submission.settings.labels, **own}
    if submission.run_id:
        annotations[RUN_ID] = submission.run_id
        if _LABEL.fullmatch(submission.run_id):  # a workflow engine's may be longer than a label can be
            labels[RUN_ID] = submission.run_id
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    return {**metadata, "namespace": submission.namespace} if submission.namespace else metadata


# --- pods ------------------------------------------------------------------------------------------------


def _driver_pod(submission: Submission) -> Manifest:
    settings = submission.settings
    arguments = ["dfm", "drive", "/etc/dfm/job.toml", "--attempts", str(settings.attempts)]
    arguments += ["--run-id", submission.run_id] if submission.run_id else []
    for name, value in _waits(submission).items():
        arguments += ["--set", f"cluster.{name}={value}"]
    arguments += ["--heartbeat", _HEARTBEAT]
    container = _container(submission, "driver", arguments, submission.sizing.driver_memory, 1)
    # find, not Python: a probe must not fail for want of memory or of a processor's time. Nobody calls the driver, so
    # that it needs no readiness. It ends a driver that `dfm drive` should have ended five minutes before.
    container["startupProbe"] = _exec_probe(f"test -e {_HEARTBEAT}", 5, 120)
    container["livenessProbe"] = _exec_probe(f'test -n "$(find {_HEARTBEAT} -mmin -15)"', 60, 5)
    container["volumeMounts"].append({"name": "job", "mountPath": "/etc/dfm", "readOnly": True})
    pod = _pod(submission, container, "job-runner")
    pod["volumes"].append({"name": "job", "configMap": {"name": _own_name(submission, "job")}})
    pod["restartPolicy"] = "Never"  # OnFailure, the operator's default, restarts for ever what cannot succeed
    if settings.deadline:
        pod["activeDeadlineSeconds"] = settings.deadline
    return pod


def _waits(submission: Submission) -> dict[str, int]:
    """The driver's patience with its cluster, which starts beside it, as far as the job leaves it to its defaults. Two
    thirds of the workers are enough to begin with; the others join when nodes are found for them.
    """
    values = {"worker_timeout": submission.patience, "min_workers": max(1, submission.sizing.workers * 2 // 3)}
    own, default = submission.job.cluster, ClusterSettings()
    return {name: value for name, value in values.items() if getattr(own, name) == getattr(default, name)}


def _scheduler_pod(submission: Submission) -> Manifest:
    arguments = ["dask", "scheduler", "--port", "8786", "--dashboard-address", ":8787"]
    arguments += ["--protocol", "tls"] if submission.settings.tls_secret else []
    container = _container(submission, "scheduler", arguments, submission.sizing.scheduler_memory, 1)
    container["env"].append({"name": "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES", "value": json.dumps(_API_ROUTES)})
    container["env"].append({"name": "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "value": "60s"})
    container["ports"] = [
        {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
        {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
    ]
    container["readinessProbe"] = _probe("http-dashboard", 5, 3)
    container["livenessProbe"] = _probe("http-dashboard", 15, 8)
    return _pod(submission, container, "scheduler")


def _worker_pod(submission: Submission) -> Manifest:
    settings, sizing = submission.settings, submission.sizing
    arguments = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", str(sizing.worker_cpus)]
    arguments += ["--memory-limit", str(sizing.worker_memory), "--local-directory", "/scratch"]
    arguments += ["--dashboard-address", ":8788", "--death-timeout", "600"]
    arguments += ["--protocol", "tls"] if settings.tls_secret else []
    arguments += ["--resources", f"GPU={settings.gpus}"] if settings.gpus else []
    container = _container(submission, "worker", arguments, sizing.worker_memory, sizing.worker_cpus)
    # Mapped partitions count as a process's memory for Dask, though the system takes their pages back: the pod's limit
    # is what ends a worker that really needs too much.
    for key in ("PAUSE", "TERMINATE"):
        container["env"].append({"name": f"DASK_DISTRIBUTED__WORKER__MEMORY__{key}", "value": "False"})
    container["ports"] = [{"name": "http-dashboard", "containerPort": 8788, "protocol": "TCP"}]
    container["readinessProbe"] = _probe("http-dashboard", 5, 3)
    container["livenessProbe"] = _probe("http-dashboard", 15, 8)
    container["lifecycle"] = {"preStop": {"exec": {"command": ["python", "-m", "dfm.distributed.retire"]}}}
    container["volumeMounts"].append({"name": "scratch", "mountPath": "/scratch"})
    pod = _pod(submission, container, "worker")
    pod["volumes"].append(_scratch(submission))
    pod["terminationGracePeriodSeconds"] = 25 if settings.spot else 60
    if settings.worker_node_selector:
        pod["nodeSelector"] = {**settings.node_selector, **settings.worker_node_selector}
    if settings.gpus:
        container["resources"]["limits"]["nvidia.com/gpu"] = str(settings.gpus)
        pod["tolerations"].append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if settings.spot:
        pod["tolerations"] += [_tolerated(key) for key in _SPOT_TAINTS]
    return pod


_SPOT_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "karpenter.sh/disruption", "spot")


def _tolerated(key: str) -> Manifest:
    return {"key": key, "operator": "Exists"}


def _scratch(submission: Submission) -> Manifest:
    size = quantity(submission.sizing.scratch)
    if not submission.settings.scratch_claim:
        return {"name": "scratch", "emptyDir": {"sizeLimit": size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": submission.settings.scratch_claim,
        "resources": {"requests": {"storage": size}},
    }
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _pod(submission: Submission, container: Manifest, component: str) -> Manifest:
    settings = submission.settings
    labels = {"dask.org/cluster-name": submission.name, "dask.org/component": component}
    pod: Manifest = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        # Else a job called dfm would find DFM_SCHEDULER_PORT and the like among its variables.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 30,
        "tolerations": [dict(each) for each in settings.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}}],
    }
    if settings.pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.pull_secret}]
    if settings.tls_secret:
        pod["volumes"].append({"name": "tls", "secret": {"secretName": settings.tls_secret, "defaultMode": 0o440}})
    pod["volumes"] += [_volume(number, each) for number, each in enumerate(settings.volumes)]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.affinity:
        pod["affinity"] = dict(settings.affinity)
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    return pod


def _volume(number: int, volume: Mapping[str, Any]) -> Manifest:
    """A pod's volume of one of kubernetes.volumes."""
    server, _, path = volume.get("nfs", "").partition(":")
    sources: dict[str, Manifest] = {
        "claim": {"persistentVolumeClaim": {"claimName": volume.get("claim")}},
        "nfs": {"nfs": {"server": server, "path": path}},
        "host_path": {"hostPath": {"path": volume.get("host_path")}},
        "secret": {"secret": {"secretName": volume.get("secret"), "defaultMode": 0o440}},
        "config_map": {"configMap": {"name": volume.get("config_map")}},
        "empty": {"emptyDir": {"sizeLimit": quantity(parse_bytes(volume.get("empty", "0B")))}},
    }
    kind = next(kind for kind in sources if kind in volume)
    return {"name": f"volume-{number}", **sources[kind]}


def _mount(number: int, volume: Mapping[str, Any]) -> Manifest:
    mount: Manifest = {"name": f"volume-{number}", "mountPath": volume["mount"]}
    mount |= {"subPath": volume["sub_path"]} if "sub_path" in volume else {}
    return mount | ({"readOnly": True} if volume.get("read_only") else {})


def _container(submission: Submission, name: str, arguments: list[str], memory: int, cpus: int) -> Manifest:
    settings = submission.settings
    limit = quantity(memory)
    container: Manifest = {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": _environment(submission),
        "resources": {
            "requests": {"cpu": str(cpus), "memory": limit},
            "limits": {"memory": limit, **({"cpu": str(cpus)} if settings.cpu_limits else {})},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    sources = [{"secretRef": {"name": settings.secret}}] if settings.secret else []
    sources += [{"configMapRef": {"name": settings.config_map}}] if settings.config_map else []
    if sources:
        container["envFrom"] = sources
    container["volumeMounts"] += [_mount(number, each) for number, each in enumerate(settings.volumes)]
    if settings.tls_secret:
        container["volumeMounts"].append({"name": "tls", "mountPath": _TLS, "readOnly": True})
    return container


def _environment(submission: Submission) -> list[Manifest]:
    values = {"HOME": "/tmp", "NUMBA_CACHE_DIR": "/tmp/numba", "DASK_TEMPORARY_DIRECTORY": "/tmp"}
    if submission.settings.tls_secret:
        comm = "DASK_DISTRIBUTED__COMM__"
        # The operator gives tcp:// to every container that has no address of its own. The short name holds in whatever
        # namespace kubectl applies the objects to, and whatever the cluster's domain is.
        values["DASK_SCHEDULER_ADDRESS"] = f"tls://{submission.name}-scheduler:8786"
        values[f"{comm}REQUIRE_ENCRYPTION"] = "True"
        values[f"{comm}TLS__CA_FILE"] = f"{_TLS}/ca.crt"
        for role in ("SCHEDULER", "WORKER", "CLIENT"):
            values[f"{comm}TLS__{role}__CERT"] = f"{_TLS}/tls.crt"
            values[f"{comm}TLS__{role}__KEY"] = f"{_TLS}/tls.key"
    values |= submission.settings.environment
    kept = {name: _kept_value(where) for name, where in submission.settings.environment_from.items()}
    return [{"name": name, "value": value} for name, value in values.items() if name not in kept] + [
        {"name": name, "valueFrom": source} for name, source in kept.items()
    ]


def _kept_value(where: str) -> Manifest:
    """The source of a variable, of "secret:NAME:KEY" or "configmap:NAME:KEY"."""
    kind, name, key = where.split(":")
    return {"secretKeyRef" if kind == "secret" else "configMapKeyRef": {"name": name, "key": key}}


def _probe(port: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": "/health", "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _exec_probe(condition: str, period: int, failures: int) -> Manifest:
    return {
        "exec": {"command": ["sh", "-c", condition]},
        "periodSeconds": period,
        "timeoutSeconds": 30,
        "failureThreshold": failures,
    }


def _service(name: str) -> Manifest:
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [
            {"name": "tcp-comm", "protocol": "TCP", "port": 8786, "targetPort": "tcp-comm"},
            {"name": "http-dashboard", "protocol": "TCP", "port": 8787, "targetPort": "http-dashboard"},
        ],
    }
