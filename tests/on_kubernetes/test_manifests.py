"""What is sent to Kubernetes: legal for the operator's CRDs, legal as pods, and free of the operator's known traps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import itertools
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from dfm.averaging.cost_model import job_times
from dfm.errors import SettingsError
from dfm.kubernetes import manifest, sizing, submit
from dfm.kubernetes.manifest import Submission
from dfm.launch import supervisor
from dfm.runs import heartbeat
from dfm.settings.job import Job, load_job
from tests.support.operator_parts import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    built,
    check_crd,
    kustomize,
    kustomized,
    rendered,
)

SIZES = sizing.Sizing(3, 1, 4 << 30, 2 << 30, 1 << 30, 20 << 30)
SIZED = {"workers": 3, "worker_memory": "4GiB", "driver_memory": "2GiB", "scratch": "20GiB"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpu": {"gpus": 1, "image": "dfm:cuda"},
    "spot": {"spot": True},
    "tls": {"tls_secret": "dfm-tls"},
    "everything": {
        "secret": "keys", "pull_secret": "pull", "tls_secret": "t", "spot": True, "gpus": 1, "deadline": 60,
        "scratch_claim": "nvme", "service_account": "me",
    },
}  # fmt: skip


def job_of(settings: dict[str, Any] | None = None, **tables: Any) -> Job:
    base = {"data": {"train": "s3://in/x"}, "output": {"directory": "s3://out/y"}, "kubernetes": settings or {}}
    return Job.from_dict({**base, **tables})


def submission_of(settings: dict[str, Any] | None = None, **tables: Any) -> Submission:
    return Submission("clicks-1", "team", job_of(settings, **tables), SIZES, "20261121-101010-abcdef")


def pod_specs(body: Manifest) -> list[Manifest]:
    spec = body["spec"]
    return [spec["job"]["spec"], *(spec["cluster"]["spec"][part]["spec"] for part in ("worker", "scheduler"))]


def versions() -> list[str]:
    """1.28 and every later one that the validator knows."""
    validator = pytest.importorskip("kubernetes_validate")
    newest = int(validator.latest_version().split(".")[1])
    assert newest >= 36
    return [f"1.{minor}" for minor in range(28, newest + 1)]


def check_strictly(body: Manifest) -> None:
    """kubernetes-validate's error where an object is not legal on one of the versions, or has a field too many."""
    _check_strictly(json.dumps(body, sort_keys=True))


@functools.cache
def _check_strictly(body: str) -> None:
    """Cached: the overlays share most of their objects."""
    validator = pytest.importorskip("kubernetes_validate")
    for version in versions():
        validator.validate(json.loads(body), version, strict=True)


def check_all(objects: list[Manifest]) -> list[Manifest]:
    """Everything that Kubernetes would hold: the objects, and what the operator makes of the DaskJob."""
    jobs = [body for body in objects if body["kind"] == "DaskJob"]
    made = [each for job in jobs for each in built(job)]
    for body in [*objects, *made]:
        if body["apiVersion"].startswith("kubernetes.dask.org/"):
            check_crd(body)
        elif not body["apiVersion"].startswith("monitoring.coreos.com/"):
            check_strictly(body)
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_submitted_is_legal_down_to_the_pods(name: str) -> None:
    made = check_all(manifest.objects(submission_of(SETTINGS[name])))
    kinds = [body["kind"] for body in made]
    assert kinds == ["DaskCluster", "Deployment", "Service", "DaskWorkerGroup", "Deployment", "Pod"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_legal_down_to_the_pods(overlay: str) -> None:
    objects = kustomized(overlay)
    made = check_all(objects)
    assert any(body["kind"] == "Pod" for body in made)
    assert {body["metadata"].get("namespace", "dfm") for body in objects} == {"dfm"}


@pytest.mark.skipif(not kustomize(), reason="neither kubectl nor kustomize is installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render_alike_with_and_without_kustomize(overlay: str) -> None:
    def key(body: Manifest) -> tuple[str, str]:
        return body["kind"], body["metadata"]["name"]

    ours, theirs = (
        {key(body): body for body in found} for found in (rendered(KUBERNETES / overlay), kustomized(overlay))
    )
    assert ours == theirs


def test_the_closed_schema_refuses_a_field_that_the_operator_would_drop() -> None:
    body = manifest.dask_job(submission_of())
    wrong = copy.deepcopy(body)
    wrong["spec"]["cluster"]["spec"]["idleTimeout"] = 60
    check_crd(wrong)  # in the CRD, and yet it does not reach the cluster: not used
    wrong["spec"]["cluster"]["spec"]["worker"]["spec"]["preStopSleep"] = 5
    with pytest.raises(Exception, match="preStopSleep"):
        check_crd(wrong)
    assert "idleTimeout" not in str(body)


def test_the_files_in_deploy_are_those_that_render_makes() -> None:
    render = script("render")
    for path, text in render.files().items():
        assert path.read_text() == text, f"{path.name}: run deploy/kubernetes/render.py"
    for name, settings in render.OVERLAYS.items():
        job = next(body for body in kustomized(f"overlays/{name}") if body["kind"] == "DaskJob")
        assert job == manifest.dask_job(render.submission(settings))


# --- traps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_pods_are_hardened_bounded_and_see_no_service_variables(name: str) -> None:
    for pod in pod_specs(manifest.dask_job(submission_of(SETTINGS[name]))):
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context, resources = container["securityContext"], container["resources"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert resources["requests"]["memory"] == resources["limits"]["memory"]
            names = [each["name"] for each in container["env"]]
            assert len(names) == len({*names})


def test_a_failing_driver_is_not_restarted_by_kubernetes() -> None:
    supervisor, worker, scheduler = pod_specs(manifest.dask_job(submission_of()))
    assert supervisor["restartPolicy"] == "Never"
    assert "drive" in supervisor["containers"][0]["args"]
    for pod in (worker, scheduler):
        assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/health"
        assert pod["containers"][0]["readinessProbe"]


def test_the_driver_waits_for_its_cluster_as_the_job_says_or_as_long_as_pods_may_take() -> None:
    def waits(settings: dict[str, Any], cluster: dict[str, Any]) -> list[str]:
        arguments = pod_specs(manifest.dask_job(submission_of(settings, cluster=cluster)))[0]["containers"][0]["args"]
        return [argument for argument in arguments if argument.startswith("cluster.")]

    assert waits({"start_timeout": 1800}, {}) == ["cluster.worker_timeout=1800", "cluster.min_workers=2"]
    assert waits({}, {"worker_timeout": 77}) == ["cluster.min_workers=2"]
    assert waits({}, {"min_workers": 3}) == ["cluster.worker_timeout=900"]
    with pytest.raises(SettingsError, match=r"cluster\.min_workers = 4 are never there, for the job gets 3 \(kubern"):
        submit.prepare(job_of(SIZED, cluster={"min_workers": 4}))


def test_the_driver_is_probed_by_the_heartbeat_that_it_is_told_to_leave() -> None:
    container = pod_specs(manifest.dask_job(submission_of()))[0]["containers"][0]
    file = container["args"][container["args"].index("--heartbeat") + 1]
    assert any(file.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])
    for kind in ("startupProbe", "livenessProbe"):
        assert container[kind]["exec"]["command"][:2] == ["sh", "-c"]
        assert file in container[kind]["exec"]["command"][2]
    # What hangs is ended and started again by `dfm drive` first: a pod that Kubernetes ends is not.
    minutes = int(re.findall(r"-mmin -(\d+)", container["livenessProbe"]["exec"]["command"][2])[0])
    assert 60 * minutes > heartbeat.STALLED_SECONDS + supervisor._LONGEST_PAUSE
    assert heartbeat.STALLED_SECONDS > 100 * heartbeat.SECONDS
    assert "readinessProbe" not in container


def test_under_tls_no_container_is_given_a_plain_address() -> None:
    for body in built(manifest.dask_job(submission_of({"tls_secret": "dfm-tls"}))):
        pod = body["spec"] if body["kind"] == "Pod" else body["spec"].get("template", {}).get("spec")
        for container in pod["containers"] if pod and "containers" in pod else []:
            addresses = [e["value"] for e in container["env"] if e["name"] == "DASK_SCHEDULER_ADDRESS"]
            assert addresses == ["tls://clicks-1-scheduler:8786"], "in whatever namespace the objects are applied"


@pytest.mark.parametrize("name", ["x" * 54, "Upper", "-x", "dotted.name", "", "2026-clicks", "7", "x-"])
def test_a_name_that_breaks_the_cluster_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"is no name for a DaskJob: at most 53 .* a letter, as .* Service"):
        manifest.check_name(name)


@pytest.mark.parametrize("stem", ["job", "A Job_of.Ours", "x" * 80, "täglich", "___", "2026-11 clicks", "9" * 80, "7"])
def test_names_made_of_job_files_are_legal(stem: str) -> None:
    name = manifest.name_for(stem, "20261121-101010-abcdef")
    manifest.check_name(name)
    assert name.endswith("-20261121-101010-abcdef")


def test_a_stem_that_begins_with_a_digit_is_kept_behind_a_word() -> None:
    assert manifest.name_for("2026-11 clicks", "run") == "dfm-2026-11-clicks-run"
    assert manifest.name_for("___", "run") == "dfm-run"
    assert manifest.name_for("9" * 80, "run") == f"dfm-{'9' * 45}-run"


# --- the job file ---------------------------------------------------------------------------------------


def test_the_job_file_in_the_cluster_is_the_job(tmp_path: Path) -> None:
    tables = {
        "schema": {"label": 'a "quoted"\n\\ name', "transforms": {"price.x": "raw"}, "crosses": [["a", "b"]]},
        "training": {"learning_rate": 1e-5, "early_stopping": False},
        "cluster": {"scheduler": "tcp://laptop:8786", "cache": "/home/me/cache"},
    }
    job = job_of(**tables)
    body = manifest.job_file(submission_of(**tables))
    (tmp_path / "job.toml").write_text(body["data"]["job.toml"])
    again = load_job(tmp_path / "job.toml")
    assert again.fingerprint() == job.fingerprint()
    assert (again.schema, again.training, again.output) == (job.schema, job.training, job.output)
    assert again.cluster.scheduler == ""
    assert not again.cluster.cache.startswith("/")


def test_a_job_file_that_no_config_map_can_hold_is_refused_before_anything_is_made() -> None:
    shards = [f"s3://clicks/day=2026-11-21/part-{number:05}.parquet" for number in range(25_000)]
    with pytest.raises(
        SettingsError, match=r"the job file has 1,\d+,\d+ bytes.* name 25,000 paths; name folders or globs"
    ):
        manifest.objects(submission_of(data={"train": shards}))
    assert manifest.objects(submission_of(data={"train": shards[:10_000]}))


def test_storage_options_travel_in_the_job_file_and_nowhere_else() -> None:
    data = {"train": "s3://in/x", "storage_options": {"endpoint_url": "http://inside"}}
    submission = submission_of(data=data)
    objects = manifest.objects(submission)
    assert objects[0]["kind"] == "ConfigMap"
    kept = tomllib.loads(objects[0]["data"]["job.toml"])["data"]["storage_options"]
    assert kept == {"endpoint_url": "http://inside"}
    assert "http://inside" not in yaml.safe_dump(objects[1:])
    source = {"name": "job", "configMap": {"name": objects[0]["metadata"]["name"]}}
    assert source in objects[1]["spec"]["job"]["spec"]["volumes"]
    assert "kind: Secret" not in yaml.safe_dump(objects)


def test_objects_beside_the_job_have_names_of_their_run_alone() -> None:
    first, _, budget = manifest.objects(submission_of())
    second, *_ = manifest.objects(dataclasses.replace(submission_of(), run_id="another"))
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert budget["spec"]["minAvailable"] == 2
    covered = budget["spec"]["selector"]["matchExpressions"][0]["values"]
    assert covered == ["job-runner", "scheduler"]


def test_a_run_id_that_no_label_can_be_is_kept_all_the_same() -> None:
    long = f"{'a_dag' * 20}.train.20261116T000000"
    metadata = manifest.dask_job(dataclasses.replace(submission_of(), run_id=long))["metadata"]
    assert metadata["annotations"]["dfm/run-id"] == long
    assert "dfm/run-id" not in metadata["labels"]


# --- what a platform asks for ---------------------------------------------------------------------------

PLATFORM: dict[str, Any] = {
    "cpu_limits": True,
    "node_selector": {"pool": "cpu"},
    "worker_node_selector": {"disk": "nvme"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
            }
        }
    },
    "tolerations": [{"key": "team", "operator": "Equal", "value": "ads", "effect": "NoSchedule"}],
    "priority_class": "nightly",
    "labels": {"team": "ads", "example.com/cost-centre": "17"},
    "annotations": {"example.com/note": "any text: at all"},
    "environment": {"AWS_ENDPOINT_URL": "http://store", "HOME": "/data/home"},
    "environment_from": {"AWS_SECRET_ACCESS_KEY": "secret:keys:secret", "REGION": "configmap:settings:region"},
    "config_map": "settings",
    "volumes": [
        {"mount": "/data", "claim": "clicks", "read_only": True},
        {"mount": "/models", "claim": "models", "sub_path": "ctr"},
        {"mount": "/nfs", "nfs": "filer:/export/ctr"},
        {"mount": "/certificates", "secret": "ca"},
        {"mount": "/spare", "empty": "1GiB"},
    ],
}


def test_what_a_platform_asks_for_is_in_every_pod_and_legal() -> None:
    job = manifest.dask_job(submission_of(PLATFORM))
    check_crd(job)
    for body in built(job):
        if body["kind"] in ("Pod", "Deployment"):
            check_strictly(body)
            template = body if body["kind"] == "Pod" else body["spec"]["template"]
            assert template["metadata"]["labels"]["team"] == "ads"
            assert template["metadata"]["annotations"]["example.com/note"] == "any text: at all"
    driver, worker, scheduler = pod_specs(job)
    assert worker["nodeSelector"] == {"pool": "cpu", "disk": "nvme"}
    assert driver["nodeSelector"] == scheduler["nodeSelector"] == {"pool": "cpu"}
    for pod in (driver, worker, scheduler):
        assert pod["affinity"] == PLATFORM["affinity"]
        assert PLATFORM["tolerations"][0] in pod["tolerations"]
        assert pod["priorityClassName"] == "nightly"
        (container,) = pod["containers"]
        variables = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert len(variables) == len(container["env"])
        assert (variables["HOME"], variables["AWS_ENDPOINT_URL"]) == ("/data/home", "http://store")
        assert variables["REGION"] == {"configMapKeyRef": {"name": "settings", "key": "region"}}
        assert variables["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "keys", "key": "secret"}}
        assert {"configMapRef": {"name": "settings"}} in container["envFrom"]
        assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert volumes[mounts["/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "clicks"}
        assert mounts["/data"]["readOnly"] is True
        assert mounts["/models"]["subPath"] == "ctr"
        assert volumes[mounts["/nfs"]["name"]]["nfs"] == {"server": "filer", "path": "/export/ctr"}
        assert volumes[mounts["/spare"]["name"]]["emptyDir"] == {"sizeLimit": "1Gi"}


def test_the_job_file_of_the_pods_says_the_same_as_the_users() -> None:
    submission = submission_of(PLATFORM)
    text = manifest.job_file(submission)["data"]["job.toml"]
    again = Job.from_dict(tomllib.loads(text))
    assert again.kubernetes == submission.job.kubernetes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"volumes": [{"mount": "data", "claim": "c"}]}, "mount must be a path from the root"),
        ({"volumes": [{"mount": "/data"}]}, "Give exactly one of claim, nfs"),
        ({"volumes": [{"claim": "c"}]}, "It lacks mount"),
        ({"volumes": [{"mount": "/d", "claim": "c", "readonly": True}]}, 'Did you mean "read_only"'),
        ({"volumes": [{"mount": "/d", "claim": "c"}, {"mount": "/d", "claim": "e"}]}, "mounts '/d' twice"),
        ({"volumes": [{"mount": "/tmp/x", "claim": "c"}]}, "where dfm mounts its own"),
        ({"tolerations": [{"key": "k", "operator": "exists"}]}, 'operator must be "Exists" or "Equal"'),
        ({"affinity": {"nodeaffinity": {}}}, 'Did you mean "nodeAffinity"'),
        ({"labels": {"team": "two words"}}, "of letters, digits"),
        ({"environment": {"two words": "x"}}, "the name of a variable"),
        *(
            ({"environment_from": {"X": source}}, '"secret:NAME:KEY"')
            for source in ("vault:a:b", "secret:-a:KEY", "secret:a..b:KEY", f"configmap:{254 * 'a'}:KEY")
        ),
        ({"start_timeout": -1}, "0 or more"),
        *(
            ({knob: name}, f'kubernetes.{knob} = "{name[:60]}')
            for knob in (
                *("secret", "pull_secret", "tls_secret", "config_map"),
                *("service_account", "priority_class", "scratch_claim", "namespace"),
            )
            for name in ("Foo_bar", "A B", "-a", "a-", "a..b", 254 * "a")
        ),
        *(({"namespace": name}, "at most 63 of a-z, 0-9 and -") for name in ("a.b", 64 * "a")),
        ({"volumes": [{"mount": "/d", "claim": "a..b"}]}, "claim must be the name of an object"),
    ],
)
def test_what_no_pod_can_be_given_is_refused_at_the_door(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)):
        job_of(settings)


@pytest.mark.parametrize("name", ["a", "aws-keys", "0-9", 63 * "a"])
def test_names_that_kubernetes_takes_are_taken(name: str) -> None:
    knobs = ("secret", "tls_secret", "service_account", "priority_class")
    longer = f"{name}.{189 * 'b'}"
    assert job_of({**dict.fromkeys(knobs, longer), "namespace": name}).kubernetes.secret == longer
    assert job_of(dict.fromkeys(("secret", "namespace"), "")).kubernetes.namespace == ""
    sources = {"KEY": f"secret:{longer}:{253 * 'k'}"}
    assert job_of({"environment_from": sources}).kubernetes.environment_from == sources


@pytest.mark.parametrize(
    ("volumes", "told"),
    [
        ([], "lies below no volume that the pods mount (kubernetes.volumes: none)"),
        ([{"mount": "/dat", "claim": "c"}], "lies below no volume that the pods mount (kubernetes.volumes: /dat)"),
        ([{"mount": "/data", "claim": "c", "read_only": True}], "read-only, or each pod's own"),
        ([{"mount": "/data", "claim": "c"}, {"mount": "/data/out", "empty": "1GB"}], "read-only, or each pod's own"),
        ([{"mount": "/data", "claim": "c"}], ""),
    ],
)
def test_an_output_in_a_folder_has_to_lie_in_a_volume_that_keeps_it(volumes: list[dict[str, Any]], told: str) -> None:
    sizes = {"workers": 2, "worker_memory": "1GiB", "driver_memory": "1GiB", "scratch": "1GiB"}
    tables = {"output": {"directory": "file:///data/out"}, "data": {"train": "s3://in/x"}}
    job = Job.from_dict({**tables, "kubernetes": {**sizes, "volumes": volumes}})
    if told:
        with pytest.raises(SettingsError, match=re.escape(told)):
            submit.prepare(job)
    else:
        assert submit.prepare(job).job is job


def test_the_role_of_the_submitter_names_no_secret() -> None:
    documents = list(yaml.safe_load_all((KUBERNETES / "base" / "access.yaml").read_text()))
    (role,) = [body for body in documents if body["kind"] == "Role"]
    allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert "secrets" not in allowed
    assert allowed["configmaps"] == allowed["poddisruptionbudgets"] == {"create", "list", "delete"}
    assert allowed["events"] == allowed["deployments"] == {"list"}


# --- sizes ----------------------------------------------------------------------------------------------


@functools.cache
def script(name: str) -> ModuleType:
    """A script of deploy/kubernetes as a module."""
    spec = importlib.util.spec_from_file_location(name, KUBERNETES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan(rows: int, replicas: int = 8, hash_bits: int = 22) -> dict[str, Any]:
    found: dict[str, Any] = script("sizes").plan_of(rows, hash_bits, replicas)
    return found


def test_sizes_grow_with_the_data_and_cover_what_was_measured() -> None:
    large = plan(17_500_000)
    # 17.5 M rows on two workers: 0.66 GB of anonymous memory at most (benchmarks/memory-2026-11-21.md).
    assert sizing.worker_memory(large, 1) > 0.66e9
    for before, after in itertools.pairwise([plan(rows) for rows in (10**6, 10**7, 10**8)]):
        assert sizing.worker_memory(before, 1) <= sizing.worker_memory(after, 1)
        assert sizing.scratch(before, 4) <= sizing.scratch(after, 4)
    assert sizing.scratch(large, 2) > large["partition_cache_bytes"]


def test_workers_are_added_while_they_pay() -> None:
    assert sizing.workers_for(plan(100_000), 1) == 1
    assert sizing.workers_for(plan(17_500_000), 1) == 8
    assert sizing.workers_for(plan(10**9, replicas=32), 1) == 32  # none without a replica
    assert sizing.workers_for(plan(10**9, replicas=32), 4) == 8
    assert sizing.workers_for(plan(10**9, replicas=12), 1) == 12
    # So many replicas that averaging them outweighs what more workers save.
    assert sizing.workers_for(plan(10**9, replicas=2048, hash_bits=26), 1) < 512
    for rows in (10**7, 10**8, 10**9):
        times = [job_times(plan(rows, replicas=64), workers, 1) for workers in (1, 2, 4, 8)]
        assert all(more.seconds < fewer.seconds for fewer, more in itertools.pairwise(times))
        assert all(each.later_epoch <= each.first_epoch for each in times)


def test_the_cost_model_is_within_a_factor_of_two_of_a_job_that_was_measured() -> None:
    """17.5 M rows on two workers: 42 s of preparation, 3.1 s an epoch (benchmarks/memory-2026-11-21.md)."""
    times = job_times(plan(17_500_000), 2, 1)
    assert 42 / 2 < times.preparation < 42 * 2
    assert 3.1 / 2 < times.later_epoch < 3.1 * 2


def test_the_table_of_sizes_is_what_the_model_says() -> None:
    table = script("sizes").table()
    assert table in (KUBERNETES.parent / "README.md").read_text(), "run deploy/kubernetes/sizes.py"
    assert table.count("\n") == 6


def test_sizes_that_are_given_are_kept() -> None:
    given = {"workers": 5, "worker_memory": "3GiB", "driver_memory": "2GiB", "scratch": "7GiB", "worker_cpus": 2}
    settings = job_of(given).kubernetes
    assert not sizing.needs_plan(settings)
    assert sizing.size(settings, None) == sizing.Sizing(5, 2, 3 << 30, 2 << 30, 1 << 30, 7 << 30)
    assert sizing.needs_plan(job_of().kubernetes)
    assert [sizing.quantity(each) for each in (3 << 30, 1 << 20, (1 << 20) + 1)] == ["3Gi", "1Mi", "2Mi"]
