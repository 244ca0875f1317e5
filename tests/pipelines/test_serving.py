"""A real server on this machine: predictions by both engines, the champion of an alias, refusals with their place."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dfm.errors import DataError
from dfm.estimators import FMClassifier, FMRegressor
from dfm.model import FMModel
from dfm.workflow import registry
from dfm.workflow.gate import Verdict
from tests.support.extras import needs_onnx
from tests.support.small_models import PLAIN, make_model

httpx = pytest.importorskip("httpx", reason="the service is asked with httpx (extra dev)")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serving` is not installed")
pytest.importorskip("fastapi", reason="the extra `serving` is not installed")
engines, latency, service = (
    importlib.import_module(f"pipelines.serving.{name}") for name in ("engines", "latency", "service")
)
FOLDER = Path(service.__file__).parent
PASSED = Verdict((), {"log_loss": 0.4})
ENGINES = ["dfm", pytest.param("onnx", marks=needs_onnx)]


def published(folder: Path, min_count: int = 1) -> str:
    url = str(folder / f"model of {min_count}" / "model")
    make_model(PLAIN, min_count=min_count).save(url)
    return url


def rows_of(model: FMModel, n: int) -> list[dict[str, Any]]:
    """Rows with values that the model may know, a missing one among them."""
    columns = model.schema.columns
    kinds = {field.name: field.kind for field in model.schema.fields}
    return [
        {c: (n % 6 + 0.5 if kinds.get(c) == "numeric" else f"{c}-{n % 6}") if n % 9 else None for c in columns}
        for n in range(n)
    ]


@contextlib.contextmanager
def serving(url: str, engine: str = "dfm", every: float = 0.1, wait: bool = True) -> Iterator[tuple[Any, int]]:
    """A client of a service of its own, and its port."""
    app = service.create_app(url, engine, every)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            if wait:
                until(lambda: client.get("/health").status_code == 200)
            yield client, port
    finally:
        server.should_exit = True
        thread.join()


def until(is_so: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_answer_with_the_numbers_of_the_model(engine: str, tmp_path: Path) -> None:
    url = published(tmp_path)
    model = FMModel.load(url)
    with serving(url, engine) as (client, _):
        for n in (1, 7, 100, 300):
            rows = rows_of(model, n)
            answer = client.post("/predict", json={"rows": rows}).json()
            np.testing.assert_allclose(answer["predictions"], model.predict(rows), rtol=0, atol=1e-6)
            assert (answer["version"], answer["parameters_sha256"]) == (0, model.parameters_sha256())
        health = client.get("/health").json()
    assert health["ready"]
    assert (health["engine"], health["model"], health["version"]) == (engine, url, 0)
    assert health["parameters_sha256"] == model.parameters_sha256()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_of_a_matrix_is_served_though_no_value_of_its_rows_may_be_missing(engine: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["a", "b", "c"])
    model = FMClassifier(n_factors=2, n_epochs=1).fit(frame, frame["a"] > 0).model_
    model.save(str(tmp_path / "model"))
    rows = frame.head(5).to_dict("records")
    with serving(str(tmp_path / "model"), engine) as (client, _):
        answer = client.post("/predict", json={"rows": rows})
        np.testing.assert_allclose(answer.json()["predictions"], model.predict(frame.head(5)), rtol=0, atol=1e-6)


@needs_onnx
def test_a_model_that_is_no_single_machine_is_not_served_as_a_graph(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["a", "b", "c"])
    FMClassifier(n_factors=2, n_epochs=3, solver="mcmc").fit(frame, frame["a"] > 0).model_.save(str(tmp_path / "model"))
    with serving(str(tmp_path / "model"), "onnx", wait=False) as (client, _):
        until(lambda: "needs the score of one machine" in (client.get("/health").json()["error"] or ""))


def test_an_engine_that_says_something_else_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, "off", lambda model: lambda rows: model.predict(rows) + 0.01)
    with serving(published(tmp_path), "off", wait=False) as (client, _):
        until(lambda: "predicts" in client.get("/health").json()["error"])
        assert client.get("/health").status_code == 503


def test_until_there_is_a_model_nobody_is_told_that_there_is(tmp_path: Path) -> None:
    url = str(tmp_path / "model of 1" / "model")
    with serving(url, wait=False) as (client, _):
        until(lambda: client.get("/health").json()["error"])
        assert client.get("/health").status_code == 503
        assert client.get("/v1/models/clicks").status_code == 503
        answer = client.post("/predict", json={"rows": [{"C1": "a"}]})
        assert answer.status_code == 503
        assert "no model at" in answer.json()["detail"]
        assert "dfm_serving_ready 0" in client.get("/metrics").text
        published(tmp_path)
        until(lambda: client.get("/health").status_code == 200)


def test_a_new_champion_takes_over_between_two_requests_and_a_broken_one_does_not(tmp_path: Path) -> None:
    first, second = published(tmp_path, 1), published(tmp_path, 2)
    alias = str(tmp_path / "champion")
    registry.promote(alias, first, PASSED)
    rows = rows_of(FMModel.load(first), 50)
    expected = {number: FMModel.load(url).predict(rows) for number, url in ((1, first), (2, second))}
    assert not np.allclose(expected[1], expected[2])
    seen: set[int] = set()

    def ask(client: Any) -> int:
        answer = client.post("/predict", json={"rows": rows}).json()
        np.testing.assert_allclose(answer["predictions"], expected[answer["version"]], rtol=0, atol=1e-6)
        seen.add(answer["version"])
        return int(answer["version"])

    with serving(alias) as (client, _):
        assert ask(client) == 1
        registry.promote(alias, second, PASSED)
        until(lambda: ask(client) == 2)
        broken = json.loads((tmp_path / "champion/v000002.json").read_text())
        broken = {**broken, "number": 3, "model": str(tmp_path / "none")}
        (tmp_path / "champion/v000003.json").write_text(json.dumps(broken))
        until(lambda: client.get("/health").json()["error"])
        assert "no model at" in client.get("/health").json()["error"]
        assert ask(client) == 2
        assert "dfm_serving_model_version 2" in client.get("/metrics").text
        assert "dfm_serving_reload_failures_total 0" not in client.get("/metrics").text
        (tmp_path / "champion/v000003.json").unlink()
        registry.rollback(alias, "worse")
        until(lambda: client.get("/health").json()["version"] == 3)
        assert client.get("/health").json()["parameters_sha256"] == FMModel.load(first).parameters_sha256()
        assert client.get("/health").json()["error"] == ""
    assert seen == {1, 2}


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_rows_are_refused_with_the_row_and_the_column(engine: str, tmp_path: Path) -> None:
    url = published(tmp_path)
    model = FMModel.load(url)
    good = rows_of(model, 4)
    numeric = next(field.name for field in model.schema.fields if field.kind == "numeric")
    category = next(field.name for field in model.schema.fields if field.kind == "categorical")
    lacking = [*good[:2], {k: v for k, v in good[2].items() if k != category}]
    with serving(url, engine) as (client, _):

        def refused(rows: list[Any]) -> list[list[Any]]:
            text = json.dumps({"rows": rows})
            answer = client.post("/predict", content=text, headers={"content-type": "application/json"})
            assert answer.status_code == 422, answer.text
            assert all(fault["msg"] for fault in answer.json()["detail"])
            return [fault["loc"] for fault in answer.json()["detail"]]

        assert refused([*good, {**good[0], numeric: "no number"}]) == [["body", "rows", 4, numeric]]
        assert refused([{**good[0], numeric: math.inf}, good[1]]) == [["body", "rows", 0, numeric]]
        assert refused(lacking) == [["body", "rows", 2, category]]
        several = [{**good[0], numeric: "x"}, good[1], {**good[1], numeric: "y"}]
        assert refused(several) == [["body", "rows", 0, numeric], ["body", "rows", 2, numeric]]
        assert refused([{**good[0], category: {"deep": [1]}}])[0][:3] == ["body", "rows", 0]
        assert len(refused([{**good[0], numeric: "x"}] * 50)) == service.MOST_FAULTS
        assert refused([]) == [["body", "rows"]]
        assert refused(["text"]) == [["body", "rows", 0]]
        assert client.post("/predict", content=b"{", headers={"content-type": "application/json"}).status_code == 422
        assert client.post("/predict", json={}).json()["detail"][0]["loc"] == ["body", "rows"]
        assert client.post("/predict", json={"rows": good}).status_code == 200, "what came before harms nobody"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_without_a_finite_prediction_is_a_bad_row(engine: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(200, 2)), columns=["spent", "age"])
    FMRegressor(n_factors=0, loss="poisson").fit(frame, rng.poisson(np.exp(frame["spent"]))).model_.save(
        str(tmp_path / "model")
    )
    good, far = {"spent": 1.0, "age": 0.0}, {"spent": 1e6, "age": 0.0}
    with serving(str(tmp_path / "model"), engine) as (client, _):
        for rows, places in (([good, far, good], [1]), ([far], [0]), ([good] * 300 + [far], [300])):
            answer = client.post("/predict", json={"rows": rows})
            assert answer.status_code == 422
            found = answer.json()["detail"]
            assert [fault["loc"] for fault in found] == [["body", "rows", place] for place in places]
            assert "no finite number" in found[0]["msg"]
        assert client.post("/predict", json={"rows": [good]}).status_code == 200


class Fussy:
    """A model that refuses rows with a value "bad", and rows of two kinds beside each other."""

    predictions = 0

    def predict(self, rows: list[dict[str, Any]]) -> np.ndarray:
        self.predictions += 1
        kinds = {row["x"] for row in rows}
        if "bad" in kinds or {"a", "b"} <= kinds:
            raise DataError("row 0: column 'x': refused")
        return np.zeros(len(rows), np.float32)


def faults_in(values: list[str]) -> tuple[list[list[Any]], int]:
    """Places of the faults of rows, and how many predictions it took to find them."""
    model = Fussy()
    served = engines.Served(None, model, "", 0, "dfm", "")
    found = service.faults(served, [{"x": value} for value in values], "rows", DataError("refused"))
    return [fault["loc"] for fault in found], model.predictions


@pytest.mark.parametrize("place", [0, 4_321, 9_999])
def test_a_bad_row_among_many_is_found_in_few_predictions(place: int) -> None:
    values = ["good"] * 10_000
    values[place] = "bad"
    assert faults_in(values)[0] == [["body", "rows", place, "x"]]
    assert faults_in(values)[1] < 40


def test_rows_that_are_bad_only_together_are_not_looked_at_one_by_one() -> None:
    assert faults_in(["a", "b"] * 5_000) == ([["body", "rows"]], service.MOST_TRIES)
    assert len(faults_in(["bad", "good", "a"] * 3_000)[0]) == service.MOST_FAULTS


def test_health_answers_while_every_thread_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough, started = threading.Event(), []

    def slow(rows: list[Any]) -> Any:
        started.append(len(rows))
        if len(rows) > 100:
            enough.wait(60)
        return np.zeros(len(rows), np.float32)

    monkeypatch.setitem(engines.ENGINES, "slow", lambda model: slow)
    monkeypatch.setattr(engines, "_warm_up", lambda served: None)
    with serving(published(tmp_path), "slow") as (client, port):
        body = json.dumps({"rows": [{}] * (service.FEW_ROWS + 1)})
        url, headers = f"http://127.0.0.1:{port}/predict", {"content-type": "application/json"}
        clients = [
            threading.Thread(
                target=httpx.post, args=(url,), kwargs={"content": body, "headers": headers, "timeout": 60}
            )
            for _ in range(45)
        ]
        try:
            for thread in clients:
                thread.start()
            until(lambda: started)
            time.sleep(0.5)
            assert len(started) <= service.CPU_COUNT, "more would only share the processors"
            for path in ("/health", "/metrics", "/v1/models/clicks"):
                assert client.get(path, timeout=10).status_code == 200
        finally:
            enough.set()
            for thread in clients:
                thread.join()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"rows": NaN}', 422),
        (b'{"rows": [NaN, {}]}', 422),
        (b'{"rows": ["\\ud800"]}', 422),
        (b'{"rows": [{"\\ud800": 1}]}', 422),
        (b'{"rows": [{"C1": "\xff"}]}', 400),
        (b'{"rows": [{"broken": 1}]}', 500),
        (b'{"rows": [{"no number": 1}]}', 500),
        (b'{"rows": [{"not found": 1}]}', 500),
    ],
)
def test_a_request_that_nobody_can_score_is_answered_and_counted_as_it_is_answered(
    body: bytes, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: list[Any]) -> Any:
        if "no number" in rows[0]:
            return np.array([math.nan])
        raise DataError("refused") if "not found" in rows[0] else RuntimeError("broken")

    def no_search(*_: Any) -> Any:
        raise RuntimeError("the search is broken, too")

    monkeypatch.setattr(service, "faults", no_search if code == 500 else service.faults)
    monkeypatch.setitem(engines.ENGINES, "broken", lambda model: broken)
    monkeypatch.setattr(engines, "_warm_up", lambda served: None)
    with serving(published(tmp_path), "broken" if code == 500 else "dfm") as (client, _):
        answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == code, answer.text
        assert answer.json()["detail"]
        assert f'requests_total{{code="{code}"}} 1' in client.get("/metrics").text
        assert client.get("/predict").status_code == 405
        assert client.get("/nowhere").status_code == 404
        assert client.get("/metrics").text.count("requests_total{") == 1, "these ask for no prediction"


def test_too_many_rows_are_told_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_ROWS", 10)
    url = published(tmp_path)
    with serving(url) as (client, _):
        answer = client.post("/predict", json={"rows": rows_of(FMModel.load(url), 11)})
    assert answer.status_code == 413
    assert "`dfm predict`" in answer.json()["detail"]


def test_kserve_s_first_protocol_is_spoken_too(tmp_path: Path) -> None:
    url = published(tmp_path)
    model = FMModel.load(url)
    rows = rows_of(model, 3)
    with serving(url) as (client, _):
        assert client.get("/v1/models/clicks").json() == {"name": "clicks", "ready": True}
        found = client.post("/v1/models/clicks:predict", json={"instances": rows}).json()["predictions"]
        bad = client.post("/v1/models/clicks:predict", json={"instances": [{}]})
    np.testing.assert_allclose(found, model.predict(rows), rtol=0, atol=1e-6)
    assert bad.status_code == 422
    assert bad.json()["detail"][0]["loc"][:3] == ["body", "instances", 0]


def test_metrics_count_requests_rows_and_times(tmp_path: Path) -> None:
    url = published(tmp_path)
    rows = rows_of(FMModel.load(url), 20)
    with serving(url) as (client, _):
        for _ in range(3):
            client.post("/predict", json={"rows": rows})
        client.post("/predict", json={"rows": [{}]})
        client.post("/predict", json={"rows": []})
        lines = dict(
            line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")
        )
    assert lines['dfm_serving_requests_total{code="200"}'] == "3"
    assert lines['dfm_serving_requests_total{code="422"}'] == "2"
    assert lines["dfm_serving_rows_total"] == "60"
    assert lines["dfm_serving_seconds_count"] == lines['dfm_serving_seconds_bucket{le="+Inf"}'] == "3"
    assert 0 < float(lines["dfm_serving_seconds_sum"]) < 60


def test_the_latency_script_serves_in_a_process_and_measures_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = published(tmp_path)
    rows = rows_of(FMModel.load(url), 300)
    monkeypatch.setattr(latency, "ENGINES", ["dfm"])
    latency.report(url, rows, [1, 2], seconds=0.2)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["engine", "rows", "clients"]
    assert [line.split()[1:3] for line in lines] == [["1", "1"], ["1", "2"], ["100", "1"], ["100", "2"]]
    for line in lines:
        least, p50, p95, p99, rate = map(float, line.split()[3:])
        assert 0 < least <= p50 <= p95 <= p99
        assert rate > 0


# -------------------------------------------------------------------------------------------- Kubernetes ----

_PREDICTOR = {
    "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout", "containerConcurrency",
    "canaryTrafficPercent", "logger", "batcher", "model", "labels", "annotations", "deploymentStrategy",
}  # fmt: skip
"""Fields of a predictor of KServe beside those of a pod's spec."""


def test_the_manifest_is_a_service_of_kserve_whose_pod_is_legal() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    body = yaml.safe_load((FOLDER / "inferenceservice.yaml").read_text())
    assert (body["apiVersion"], body["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(body) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(body["spec"]) <= {"predictor", "transformer", "explainer"}
    predictor = body["spec"]["predictor"]
    assert 0 < predictor["minReplicas"] <= predictor["maxReplicas"]
    assert predictor["scaleMetric"] in {"cpu", "memory", "concurrency", "rps"}
    pod = {key: value for key, value in predictor.items() if key not in _PREDICTOR}
    (container,) = pod["containers"]
    assert container["name"] == "kserve-container", "the name by which KServe finds the one that serves"
    for version in ("1.28", validator.latest_version()):
        validator.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "clicks"}, "spec": pod}, version, strict=True
        )


def test_the_manifest_starts_the_service_on_the_port_that_it_probes() -> None:
    body = yaml.safe_load((FOLDER / "inferenceservice.yaml").read_text())
    (container,) = body["spec"]["predictor"]["containers"]
    given = service.main.make_context("service", list(container["args"])).params
    (port,) = container["ports"]
    assert given["port"] == port["containerPort"] == container["readinessProbe"]["httpGet"]["port"]
    assert given["host"] == "0.0.0.0"
    paths = {route.path for route in service.create_app("nowhere").routes}
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} <= paths
    assert container["image"].split(":")[0] in (FOLDER / "Dockerfile").read_text()
    assert "pipelines.serving.service" in (FOLDER / "Dockerfile").read_text()
