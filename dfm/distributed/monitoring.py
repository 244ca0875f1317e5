"""Views of a training while it runs: where its rows lie, Prometheus metrics, events on a topic of Dask.

Dask's scheduler and workers serve /metrics on their dashboards' ports (where prometheus_client is installed); the
plugins here add dfm's own. A broken view never breaks a training.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, SchedulerPlugin, WorkerPlugin

from dfm.distributed.cluster.remote import install
from dfm.distributed.cluster.watch import home_of
from dfm.events import is_passing, sent
from dfm.training.plan import Plan
from dfm.training.rounds import Block, Push, train_replicas, train_rounds

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
TOPIC = "dfm"
"""`Client.subscribe_topic(TOPIC, handler)` receives a training's events wherever the client is."""
_TRAINING = (train_replicas.__name__, train_rounds.__name__)
"""Names of tasks that train: a replica's round, or a stretch of everybody's."""
_LAST_WORD = 5.0
"""Seconds to wait until the cluster has heard of an end."""
logger = logging.getLogger(__name__)


def placement_event(plan: Plan, addresses: Sequence[str]) -> Event:
    """Which worker is to hold what of the training rows: replicas, rows, shards (whole or in part), Parquet bytes."""
    found = {each: {"worker": each, "replicas": 0, "rows": 0, "shards": set[str](), "bytes": 0.0} for each in addresses}
    for replica in range(plan.n_replicas):
        at: dict[str, Any] = found[home_of(replica, plan.n_replicas, addresses)]
        at["replicas"] += 1
        for unit in (unit for task in plan.replicas[replica] for unit in task):
            at["rows"] += unit.n_rows
            at["shards"].add(unit.shard.url)
            at["bytes"] += unit.shard.size * unit.n_rows / max(unit.shard.n_rows, 1)
    workers = [{**each, "shards": len(each["shards"]), "bytes": round(each["bytes"])} for each in found.values()]  # type: ignore[arg-type, call-overload]
    return {"event": "placement", "workers": workers}


def observed(client: Client, tell: OnEvent, job: str, rounds_until: Callable[[int], int]) -> OnEvent:
    """Events go to `tell`, and, without waiting, to the cluster's metrics and topic.

    job: what metrics call it. rounds_until: the averages of a job's first so many epochs.
    """
    try:
        install(client, SchedulerMetrics())
        install(client, WorkerMetrics())
    except Exception as error:
        logger.info("the cluster shows no metrics of dfm: %s", error)

    def on_event(event: Event) -> None:
        if not is_passing(event):
            with contextlib.suppress(Exception):
                done = {"rounds_done": rounds_until(event["epoch"])} if event["event"] == "epoch" else {}
                _send(client, {**sent(event), "job": job, **done})
        tell(event)

    return on_event


def tell_end(client: Client, job: str) -> None:
    """Tell the cluster that what publishes no model ended well, and wait until it is told: its client goes next."""
    event = {**sent({"event": "ended", "state": "finished", "error": None}), "job": job}
    with contextlib.suppress(Exception):
        _send(client, event).result(_LAST_WORD)


_ORDER: WeakKeyDictionary[Client, asyncio.Lock] = WeakKeyDictionary()
"""By client: held while an event is on its way, for each takes a connection of its own, and may overtake others."""


def _send(client: Client, event: Event) -> Future[None]:
    """Hand an event to the scheduler in the client's own thread, after those before it; one that does not arrive is not
    missed.
    """

    async def send() -> None:
        async with _ORDER.setdefault(client, asyncio.Lock()):
            with contextlib.suppress(OSError):
                await client.scheduler.log_event(topic=TOPIC, msg=event)

    return asyncio.run_coroutine_threadsafe(send(), client.loop.asyncio_loop)


# --- metrics ---------------------------------------------------------------------------------------------

_GAUGES = {
    "rows_per_second": "Rows trained per second in the last epoch, averaging included",
    "train_log_loss": "Log loss of the last epoch's rows, each before it was learnt from",
    "train_rmse": "Error of the last epoch's rows, each before it was learnt from",
    "train_loss": "Another loss of the last epoch's rows, each before it was learnt from",
    "log_loss": "Log loss on the validation rows after the last epoch",
    "rmse": "Error on the validation rows after the last epoch",
    "loss": "Another loss on the validation rows after the last epoch",
    "auc": "ROC AUC on the validation rows after the last epoch",
    "epoch": "Epochs that are done",
}
_KINDS = "read", "trained", "rejected"
_ENDS = "done", "ended"
_KEPT_DONE, _KEPT_SILENT = 3600.0, 86400.0
"""Seconds after the last event of a training until its gauges go: once it is done, and else. Alerts need them for a
while, and a scheduler that stands for months would collect those of all trainings."""


@functools.cache
def scheduler_gauges() -> dict[str, Any]:
    """This process's metrics of trainings, by name; empty without prometheus_client."""
    try:
        from prometheus_client import Gauge
    except ImportError:
        return {}
    made = {name: Gauge(f"dfm_{name}", text, ["job"]) for name, text in _GAUGES.items()}
    made["rounds"] = Gauge("dfm_rounds", "Averages that are done", ["job"])
    made["last_event"] = Gauge("dfm_last_event_seconds", "When the training last told of anything, Unix time", ["job"])
    made["rows"] = Gauge("dfm_rows", "Rows of the training shards", ["job", "kind"])
    return made


@functools.cache
def worker_counters() -> dict[str, Any]:
    """This process's metrics of its share, by name; empty without prometheus_client."""
    try:
        from prometheus_client import Counter
    except ImportError:
        return {}
    texts = {
        "rows_trained": "Rows that this process has trained on, once per epoch",
        "replica_rounds": "Rounds of replicas that this process has trained",
        "kernel_seconds": "Seconds that this process's training kernel took",
    }
    return {name: Counter(f"dfm_{name}", text) for name, text in texts.items()}


class SchedulerMetrics(SchedulerPlugin):
    """Turns the events of trainings into gauges of the scheduler's /metrics."""

    name = "dfm-scheduler-metrics"
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Called once, when it is registered."""
        self._loop, self._ends = scheduler.loop, dict[str, Any]()
        scheduler_gauges()

    def log_event(self, topic: str, msg: Any) -> None:
        """Called with every event that is logged on the scheduler."""
        gauges = scheduler_gauges()
        if topic != TOPIC or not gauges:
            return
        job = msg["job"]
        gauges["last_event"].labels(job).set_to_current_time()
        self._keep(job, _KEPT_DONE if msg["event"] in _ENDS else _KEPT_SILENT)
        for name in _GAUGES:
            if msg["event"] == "epoch" and isinstance(msg.get(name), int | float):
                gauges[name].labels(job).set(msg[name])
        if msg["event"] == "epoch":
            gauges["rounds"].labels(job).set(msg["rounds_done"])
        if msg["event"] == "vocabulary":
            for kind in _KINDS:
                gauges["rows"].labels(job, kind).set(msg["rows"][kind])

    def _keep(self, job: str, seconds: float) -> None:
        """Forget a training so many seconds from now, unless it tells of anything until then."""
        if job in self._ends:
            self._loop.remove_timeout(self._ends[job])
        self._ends[job] = self._loop.call_later(seconds, self._forget, job)

    def _forget(self, job: str) -> None:
        del self._ends[job]
        for name, gauge in scheduler_gauges().items():
            for labels in [(job, kind) for kind in _KINDS] if name == "rows" else [(job,)]:
                with contextlib.suppress(KeyError):  # older releases of prometheus_client refuse what is not there
                    gauge.remove(*labels)


class WorkerMetrics(WorkerPlugin):
    """Counts what this worker trains, for its /metrics."""

    name = "dfm-worker-metrics"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Called on every worker, later ones too."""
        self._worker = worker
        worker_counters()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Called when a task of this worker changes its state."""
        counters = worker_counters()
        if not counters or start != "executing" or finish != "memory" or not str(key).startswith(_TRAINING):
            return
        trained = self._worker.data.get(key)
        if isinstance(trained, Push | Block):
            counters["rows_trained"].inc(sum(report.tally.rows for report in trained.reports))
            counters["replica_rounds"].inc(len(trained.reports))
            counters["kernel_seconds"].inc(sum(report.seconds for report in trained.reports))
