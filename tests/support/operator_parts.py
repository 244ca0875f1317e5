"""The Dask operator as far as it runs without a cluster: its CRDs, closed against unknown fields, and its builders."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]
ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["base", *sorted(f"overlays/{path.name}" for path in (KUBERNETES / "overlays").iterdir())]


@functools.cache
def controller() -> Any:
    """The operator's controller module."""
    pytest.importorskip("dask_kubernetes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dask_kubernetes.operator.controller import controller
    return controller


@functools.cache
def crd_schemas() -> dict[str, Manifest]:
    """openAPIV3Schema by kind, closed: a field that is not in it is an error."""
    package = Path(controller().__file__).parents[2]
    folder = package / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {}, "metadata": {"type": "object"}}
            found[crd["spec"]["names"]["kind"]] = schema
    return found


def closed(schema: Any) -> Any:
    """The schema with additionalProperties = false wherever properties are listed."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def check_crd(body: Manifest) -> None:
    """jsonschema's error where an object breaks the CRD of its kind."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(crd_schemas()[body["kind"]]).validate(body)


def built(job: Manifest) -> list[Manifest]:
    """What the operator would create for a DaskJob, by its own functions, in its order; one worker stands for all."""
    operator, name, namespace = controller(), job["metadata"]["name"], job["metadata"]["namespace"]
    labels, annotations = job["metadata"]["labels"], job["metadata"]["annotations"]
    spec = copy.deepcopy(job["spec"])
    inner = spec["cluster"]["spec"]
    cluster = operator.build_cluster_spec(name, inner["worker"], inner["scheduler"], annotations, labels)
    pod = operator.build_job_pod_spec(name, name, namespace, spec["job"]["spec"], annotations, labels)
    scheduler = operator.build_scheduler_deployment_spec(name, inner["scheduler"]["spec"], annotations, labels)
    service = operator.build_scheduler_service_spec(name, inner["scheduler"]["service"], annotations, labels)
    group = operator.build_default_worker_group_spec(name, inner["worker"], annotations, labels)
    worker = operator.build_worker_deployment_spec(
        group["metadata"]["name"], namespace, name, "0123456789", inner["worker"]["spec"], annotations, labels
    )
    operator.validate_cluster_name(name)
    return [cluster, scheduler, service, group, worker, pod]


def kustomize() -> list[str]:
    """The command that renders a folder, of kubectl or of kustomize itself; empty where neither is installed."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((command for command in commands if shutil.which(command[0])), [])


def kustomized(overlay: str) -> list[Manifest]:
    """The objects of base or an overlay: by kustomize where it is installed, else by our own reading of it."""
    if not (command := kustomize()):
        return rendered(KUBERNETES / overlay)
    done = subprocess.run([*command, str(KUBERNETES / overlay)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def rendered(folder: Path) -> list[Manifest]:
    """The part of kustomize that our overlays use: resources, JSON patches, a ConfigMap of files, a namespace."""
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[Manifest] = []
    for name in wanted.get("resources", []):
        path = folder / name
        found += rendered(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for made in wanted.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in made["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    for patch in wanted.get("patches", []):
        for body in found:
            target = patch["target"]
            if body["kind"] == target["kind"] and body["metadata"]["name"] == target["name"]:
                for change in yaml.safe_load((folder / patch["path"]).read_text()):
                    apply(body, change)
    for body in found:
        if "namespace" in wanted and body["kind"] != "Namespace":
            body["metadata"]["namespace"] = wanted["namespace"]
            for subject in body.get("subjects", []):
                subject["namespace"] = wanted["namespace"]
    return found


def apply(body: Any, change: Manifest) -> None:
    """One step of a JSON patch, in place."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
    for part in parents:
        body = body[int(part)] if isinstance(body, list) else body[part]
    if isinstance(body, list):
        if change["op"] == "add":
            body.insert(len(body) if last == "-" else int(last), change["value"])
        else:
            body[int(last)] = change["value"]
    elif change["op"] == "remove":
        del body[last]
    else:
        body[last] = change["value"]
