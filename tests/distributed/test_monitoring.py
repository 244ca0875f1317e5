"""What can be seen of a training from outside: on the metrics' ports, on a topic, in the report of where rows lie."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import loops, monitoring
from dfm.distributed.monitoring import SchedulerMetrics, placement_event
from dfm.runs.record import read_run
from dfm.settings.job import Job
from dfm.training.inputs import find_inputs
from tests.support.real_cluster import real_cluster
from tests.support.small_jobs import job_tables


def metrics_at(host: str, port: int) -> dict[str, float]:
    """dfm's samples at an endpoint, by name with labels."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(dfm_\S+) (\S+)$", text, re.M)}


@pytest.mark.parametrize("n_together", [1, 2])
def test_metrics_and_events_of_a_training_are_seen_on_the_cluster(
    n_together: int, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of rounds that are trained several in one task."""
    pytest.importorskip("prometheus_client")
    monkeypatch.setattr(loops, "rounds_together", lambda _run, _prepared, _n_blocks: n_together)
    topic: list[dict[str, Any]] = []
    started, tables = time.time(), job_tables(log, tmp_path, training={"n_epochs": 2, "averages_per_epoch": 2})
    with (
        real_cluster(tmp_path / "cluster", 2) as cluster,
        Client(cluster.address, set_as_default=False, timeout=120) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        client.subscribe_topic("dfm", lambda event: topic.append(event[1]))
        result = jobs.train(tables, client)
        deadline = time.monotonic() + 60
        while [event["event"] for event in topic][-1:] != ["done"] and time.monotonic() < deadline:
            time.sleep(0.1)
        port = cluster.identity["services"]["dashboard"]
        found = metrics_at("127.0.0.1", port)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        shares = [metrics_at("127.0.0.1", worker["services"]["dashboard"]) for worker in workers]
    kinds = [event["event"] for event in topic]
    assert {"placement", "vocabulary", "epoch", "done"} <= {*kinds}
    record = read_run(tables["output"]["directory"])
    assert record is not None
    job = record.run_id
    assert {event["job"] for event in topic} == {job}
    last = result.history[-1]
    assert found[f'dfm_log_loss{{job="{job}"}}'] == pytest.approx(last["log_loss"])
    assert found[f'dfm_train_log_loss{{job="{job}"}}'] == pytest.approx(last["train_log_loss"])
    assert found[f'dfm_rows_per_second{{job="{job}"}}'] == pytest.approx(last["rows_per_second"])
    assert found[f'dfm_rounds{{job="{job}"}}'] == 4
    assert found[f'dfm_rows{{job="{job}",kind="trained"}}'] == result.rows.accepted == 6_000
    assert found[f'dfm_rows{{job="{job}",kind="rejected"}}'] == 0
    assert started <= found[f'dfm_last_event_seconds{{job="{job}"}}'] <= time.time()
    # What the workers count adds up to every row in every epoch, and a round of each replica.
    assert sum(share["dfm_rows_trained_total"] for share in shares) == 2 * 6_000
    assert sum(share["dfm_replica_rounds_total"] for share in shares) == 2 * 2 * 3
    assert sum(share["dfm_kernel_seconds_total"] > 0 for share in shares) == 2 / n_together, "one trains a stretch"


def test_the_cluster_hears_that_trials_and_folds_end_well(log: Path, client: Client, tmp_path: Path) -> None:
    def told() -> list[tuple[str, str]]:
        return [(event["event"], event["job"]) for _, event in client.get_events("dfm") if event["job"] == name]

    tables = job_tables(log, tmp_path, training={"n_epochs": 1}, cluster={"worker_timeout": 61})
    name = Job.from_dict(tables).fingerprint()[:12]
    with pytest.raises(ZeroDivisionError), jobs.trials(tables, client):
        raise ZeroDivisionError
    assert ("prepared", name) in told()
    assert ("ended", name) not in told()
    with jobs.trials(tables, client):
        pass
    assert told()[-1] == ("ended", name)
    tables["data"] = {"train": str(log)}
    name = Job.from_dict(tables).fingerprint()[:12]
    jobs.cross_validate(tables, 2, client=client)
    assert told()[-1] == ("ended", name)


def test_the_last_word_comes_last(client: Client) -> None:
    """Each event may take a connection of its own, and a new one takes longer than one that is there."""
    for number in range(5):
        with Client(client.scheduler.address, set_as_default=False) as fresh:
            for event in range(6):
                monitoring._send(fresh, {"event": f"{event}", "job": f"last {number}"})
            monitoring._send(fresh, {"event": "ended", "job": f"last {number}"}).result(10)
        told = [event["event"] for _, event in client.get_events("dfm") if event["job"] == f"last {number}"]
        assert told == [*map(str, range(6)), "ended"]


class Clock:
    """A loop of a scheduler whose time is told."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, dict[int, tuple[float, Any]]()

    def call_later(self, seconds: float, call: Any, *arguments: Any) -> int:
        self.timers[number := len(self.timers) + 1] = self.now + seconds, lambda: call(*arguments)
        return number

    def remove_timeout(self, number: int) -> None:
        self.timers[number] = float("inf"), None

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for number, (moment, call) in [*self.timers.items()]:
            if moment <= self.now:
                self.remove_timeout(number)
                call()


def metrics_of(job: str) -> dict[str, float]:
    """The samples of a training in this process, by name."""
    prometheus = pytest.importorskip("prometheus_client")
    samples = (sample for metric in prometheus.REGISTRY.collect() for sample in metric.samples)
    return {sample.name: sample.value for sample in samples if sample.labels.get("job") == job}


@pytest.fixture
def metrics() -> Iterator[tuple[SchedulerMetrics, Clock]]:
    pytest.importorskip("prometheus_client")
    plugin, clock = SchedulerMetrics(), Clock()
    asyncio.run(plugin.start(SimpleNamespace(loop=clock)))
    yield plugin, clock
    clock.pass_by(1e6)


EPOCH: dict[str, Any] = {"event": "epoch", "epoch": 1, "rounds_done": 2, "auc": 0.8}


def test_losses_of_any_kind_are_gauges(metrics: tuple[SchedulerMetrics, Clock]) -> None:
    metrics[0].log_event("dfm", {**EPOCH, "job": "hinge", "train_loss": 0.5, "loss": 0.4})
    found = metrics_of("hinge")
    assert (found["dfm_train_loss"], found["dfm_loss"], found["dfm_auc"]) == (0.5, 0.4, 0.8)


@pytest.mark.parametrize("end", ["done", "ended"])
def test_the_gauges_of_a_training_go_an_hour_after_it_is_done_or_a_day_after_it_fell_silent(
    metrics: tuple[SchedulerMetrics, Clock], end: str
) -> None:
    plugin, clock = metrics
    rows = {"read": 3, "trained": 2, "rejected": 1}
    for job in ("lost", "done"):
        plugin.log_event("dfm", {"event": "vocabulary", "job": job, "rows": rows})
        clock.pass_by(20 * 3600)
        plugin.log_event("dfm", {**EPOCH, "job": job})
        clock.pass_by(60)
        assert metrics_of(job).keys() == {"dfm_last_event_seconds", "dfm_rows", "dfm_epoch", "dfm_rounds", "dfm_auc"}
    clock.pass_by(4 * 3600)
    plugin.log_event("dfm", {"event": end, "job": "done"})
    assert metrics_of("lost") == {}
    clock.pass_by(3500)
    assert metrics_of("done")["dfm_epoch"] == 1
    clock.pass_by(100)
    assert metrics_of("done") == {}
    plugin.log_event("dfm", {**EPOCH, "job": "done"})
    assert metrics_of("done")["dfm_epoch"] == 1, "a run of the same name, later"


def test_the_placement_counts_every_row_once_and_names_the_idle(log: Path, tmp_path: Path) -> None:
    inputs = find_inputs(Job.from_dict(job_tables(log, tmp_path)))
    report = placement_event(inputs.plan, ["a", "b"])["workers"]
    assert [each["worker"] for each in report] == ["a", "b"]
    assert sum(each["rows"] for each in report) == inputs.n_rows
    assert sum(each["replicas"] for each in report) == 3
    size = sum(shard.size for shard in inputs.train)
    assert sum(each["bytes"] for each in report) == pytest.approx(size, rel=1e-3)
    assert all(1 <= each["shards"] <= len(inputs.train) for each in report)
    many = placement_event(inputs.plan, [f"w{number}" for number in range(5)])["workers"]
    assert sorted(each["replicas"] for each in many) == [0, 0, 1, 1, 1]


def test_training_goes_on_where_metrics_cannot_be_registered(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = client.register_plugin

    def refuse(plugin: Any, *arguments: Any, **options: Any) -> Any:
        if "metrics" in getattr(plugin, "name", ""):
            raise ValueError("pickle is not allowed here")
        return register(plugin, *arguments, **options)

    monkeypatch.setattr(client, "register_plugin", refuse)
    assert jobs.train(job_tables(log, tmp_path), client).history
