"""The work of Python users and of the command line: train a job, plan it, evaluate and predict with a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Client

from dfm.data.parquet import find_shards
from dfm.distributed import train as training
from dfm.distributed.cluster import connect, remote
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.predict import Overwrite, Scoring, evaluate_shards, predict_shards
from dfm.distributed.train import Event, OnEvent, TrainResult
from dfm.errors import OutOfMemoryError
from dfm.kernels.custom.functions import CustomLoss
from dfm.model.fm_model import FMModel
from dfm.model.objective import with_functions
from dfm.runs.record import RunLog
from dfm.settings.job import Job, load_job
from dfm.settings.tables import ClusterSettings
from dfm.storage import files, ownership
from dfm.storage.credentials import check_options, check_url
from dfm.training.inputs import find_inputs, plan_event
from dfm.training.memory import GIB, bounds, worker_memory
from dfm.training.order import Order, admit

JobLike = str | os.PathLike[str] | Mapping[str, Any] | Job


def train(
    job: JobLike,
    client: Client | None = None,
    *,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
    run_id: str = "",
    attempts_left: int = 0,
    loss: str | Callable[..., Any] | CustomLoss | None = None,
    regularizer: Callable[..., Any] | None = None,
) -> TrainResult:
    """Train a job (path of a TOML file, dict of its tables, or Job) and publish its model.

    client: the Dask client to run on; without one the job's [cluster] decides. overrides: "table.key=value".
    on_event: called with a JSON-ready record as stages and epochs pass. DfmError where the job cannot go on.
    run_id: of a run that was submitted before, whose record this driver takes over; empty: a new one. The record lies
    in output.directory beside the model (dfm.runs.record). attempts_left: how often a supervisor would start this
    again; while it would, the record of a run whose cluster is lost says "retrying" and not "failed". loss: a name, or
    a function loss(score, y) of numbers, whose slope dfm derives. regularizer: a function of one weight, in place of
    w² / 2; training.l2_linear and l2_factors scale it.
    """
    _check(client)
    resolved, own_loss, own_regularizer = with_functions(load_job(job, overrides), loss, regularizer)
    resolved.require_training()
    # What may not begin leaves the record of the run before it alone; a run that has one is refused there.
    order = None if run_id else admit(resolved, own_loss, own_regularizer)
    scheduler = client.scheduler.address if client is not None else ""
    with RunLog(resolved, run_id, scheduler, attempts_left) as log:
        try:
            order = order or admit(resolved, own_loss, own_regularizer)
            return training.train(order, client, _both(log.on_event, on_event))
        except OutOfMemoryError as error:
            needed = worker_memory(plan(resolved), resolved.cluster.threads_per_worker) / GIB
            raise OutOfMemoryError(f"{error}. A worker of this job needs at most about {needed:.2g} GiB") from error


def _check(client: Any) -> None:
    """SettingsError or ClusterError where the client that was given, if any, cannot be used."""
    if client is not None:
        remote.check_client(client)


def _both(first: OnEvent, second: OnEvent | None) -> OnEvent:
    """The caller hears of an event before the first may end the run with it; of the last one after it is on record."""

    def on_event(event: Event) -> None:
        done = event["event"] == "done"
        if done:
            first(event)
        if second is not None:
            second(event)
        if not done:
            first(event)

    return on_event


def plan(job: JobLike, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of `train`, from the footers of the shards alone: rows, replicas, and bounds on memory and wire.

    Features are not counted yet, so the sizes are upper bounds: no more features than entries, nor than 2^hash_bits.
    """
    order = Order.of(load_job(job, overrides))
    resolved, layout = order.job, order.work.layout
    inputs = find_inputs(resolved)
    order.check_fields(len(inputs.schema.fields))
    n_fields, plan = len(inputs.schema.fields), inputs.plan
    longest = plan.longest_round if resolved.training.n_epochs > 1 else 1
    rows_per_round = min(plan.rows_of(0), -(-plan.rows_of(0) // plan.n_slices) * longest)
    return {
        "job": resolved.to_dict(),
        **{key: value for key, value in plan_event(inputs).items() if key != "event"},
        "columns": {field.name: field.transform or field.kind for field in inputs.schema.fields},
        "parquet_bytes": sum(shard.size for shard in inputs.train),
        "largest_shard_rows": max(shard.n_rows for shard in inputs.train),
        "round_rows_per_replica": rows_per_round,
        **bounds(inputs.n_rows, n_fields, rows_per_round, resolved.model.hash_bits, layout),
    }


def _checked(options: Mapping[str, Any] | None, **urls: str | Sequence[str]) -> dict[str, list[str]]:
    """The URLs as lists. SettingsError where one of them, or an option, holds a secret: both travel in tasks."""
    check_options(options, "storage_options")
    listed = {name: [found] if isinstance(found, str) else list(found) for name, found in urls.items()}
    for name, found in listed.items():
        for url in found:
            check_url(url, name)
    return listed


def evaluate(
    model: str,
    data: str | Sequence[str],
    *,
    settings: ClusterSettings | None = None,
    client: Client | None = None,
    on_bad_rows: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Metrics of a published model on labelled shards, with the row account under "account"."""
    _check(client)
    chosen = settings or ClusterSettings()
    paths = _checked(storage_options, model=[model], data=data)["data"]
    schema = FMModel.load(model, storage_options).schema  # golden rows are checked here, before any worker starts
    scoring = Scoring(files.absolute(model), on_bad_rows, storage_options=storage_options)
    shards = find_shards(paths, storage_options)
    with connect.client_of(chosen, client) as own:
        tally, account = evaluate_shards(Watch(own, chosen.worker_timeout), scoring, shards, _progress(on_event))
    account.check_any("evaluate on", schema.weight)
    rows = {"read": account.read, "evaluated": account.accepted, "rejected": account.rejected}
    return {**tally.metrics(), "account": rows}


def predict(
    model: str,
    data: str | Sequence[str],
    output: str,
    *,
    keep: Sequence[str] = (),
    overwrite: bool | Overwrite = False,
    settings: ClusterSettings | None = None,
    client: Client | None = None,
    on_bad_rows: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Score shards and write `output`/part-*.parquet: the kept columns (all, unless named) and "prediction".

    Shards may differ in their columns; all parts have one schema. Where workers run on other machines, `output` is a
    URL: of an object store, or `file://…` for a folder that they share with this machine.

    overwrite: False: `output` must be empty; "own": an earlier prediction is replaced; True, or "beside": files that
    dfm did not make may lie there too, and stay. SettingsError where `output` is, contains or lies inside the data or
    the model, whatever `overwrite` says.
    """
    _check(client)
    chosen = settings or ClusterSettings()
    replaced: Overwrite = overwrite if isinstance(overwrite, str) else "beside" if overwrite else "nothing"
    paths = _checked(storage_options, model=[model], data=data, output=[output])["data"]
    FMModel.load(model, storage_options)
    where = files.absolute(output)
    scoring = Scoring(files.absolute(model), on_bad_rows, tuple(keep), where, storage_options)
    shards = find_shards(paths, storage_options)
    ownership.check_apart(where, [*paths, model], "output", storage_options, shards=[shard.url for shard in shards])
    with connect.client_of(chosen, client) as own:
        account = predict_shards(Watch(own, chosen.worker_timeout), scoring, shards, _progress(on_event), replaced)
    return {
        "output": where,
        "rows": account.read,
        "predicted": account.accepted,
        "rejected": account.rejected,
    }


def _progress(on_event: OnEvent | None) -> Any:
    def report(stage: str, done: int, total: int) -> None:
        if on_event is not None:
            event: Event = {"event": "progress", "stage": stage, "done": done, "total": total}
            on_event(event)

    return report
