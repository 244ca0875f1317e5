"""A job handed to a Dask cluster: its driver runs there, so that nobody has to wait for it.

The driver is a task, on a worker, outside the worker's slots. Why there and not in a process beside the scheduler: when
its worker dies or is stopped, Dask starts it again on another one, and there it goes on from the last checkpoint;
workers can reach the shards and the output by what they are for; and the scheduler's host, which every task depends
on, stays free.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from typing import Any

from distributed import Client, fire_and_forget, get_worker, rpc, worker_client
from distributed.worker import WORKER_ANY_RUNNING

from dfm import jobs
from dfm.distributed.cluster import connect
from dfm.distributed.cluster.remote import is_remote
from dfm.errors import DfmError, SettingsError
from dfm.runs import record as runs
from dfm.runs.record import RunRecord
from dfm.settings.job import Job
from dfm.storage import files
from dfm.storage.tables import folder_of
from dfm.training.publish import check_output

logger = logging.getLogger(__name__)
_BOOK = "dfm-runs"
"""The key under which the scheduler's metadata keep the runs handed to it: run id to output directory."""
_RETRIES = 20
"""Times that Dask starts a driver again which an error of a worker that closes has ended."""
_ANSWER_SECONDS = 5.0
"""Seconds in which a scheduler that is up says whether it still has a driver."""
_TO_BE_RUN = ("released", "waiting", "no-worker", "queued", "processing")
"""States in which the scheduler has a task that it will start, or has started, somewhere."""


def submit(job: Job, run_id: str = "") -> RunRecord:
    """Hand a job to the cluster that its [cluster] names; returns as soon as the cluster has it.

    The record of the run lies in output.directory, where `dfm.runs.record` follows it. Paths of this machine are
    written in full; they must mean the same to the workers.
    """
    job = with_absolute_paths(job)
    _check_job(job)
    run_id = run_id or runs.new_run_id()
    with connect.client_of(job.cluster, None) as client:
        _check_paths(job, client)
        record = runs.submitted(job, run_id, client.scheduler.address)
        client.set_metadata([_BOOK, run_id], job.output.directory)
        # The driver's own client comes from its worker, with that worker's address and TLS.
        # Its worker stands in another folder than this process.
        cache = connect.cache_directory(job.cluster, client)
        cluster = dataclasses.replace(job.cluster, scheduler="", factory="", cache=cache)
        own = dataclasses.replace(job, cluster=cluster)
        fire_and_forget(client.submit(drive_run, own, run_id, key=_key(run_id), pure=False, retries=_RETRIES))
    return record


def check(job: Job) -> str:
    """Make the checks of `submit` and submit nothing; the address of the scheduler that the job would go to."""
    job = with_absolute_paths(job)
    _check_job(job)
    with connect.client_of(job.cluster, None) as client:
        _check_paths(job, client)
        return str(client.scheduler.address)


def _check_job(job: Job) -> None:
    job.require_training()
    if job.cluster.factory or not is_remote(job.cluster):
        raise SettingsError(
            "submitting needs a cluster that stays when this command ends: name it in cluster.scheduler (--scheduler "
            "tcp://…) or DASK_SCHEDULER_ADDRESS; a cluster.factory's cluster ends with its client: use `dfm train`"
        )
    check_output(job)


def check_free(job: Job) -> None:
    """SettingsError where a run is at work in the output directory, or about to begin."""
    runs.check_free(with_absolute_paths(job).output.directory, job.data.storage_options)


def drive_run(job: Job, run_id: str) -> str:
    """The driver, as a task; returns the state that the run ended in. Started again, it leaves a run that is over.

    ClusterError where its worker closes meanwhile: for Dask a task that returns is done, and one that errs begins anew.
    """
    record = runs.read_run(job.output.directory, job.data.storage_options)
    if record is not None and record.run_id != run_id:
        logger.warning("run %s is not driven: %s holds run %s now", run_id, job.output.directory, record.run_id)
        return "superseded"
    if record is None or not record.is_over:
        with worker_client(separate_thread=True) as client:
            starts_left = functools.cache(functools.partial(_starts_left, client, _key(run_id)))
            try:
                jobs.train(job, client, run_id=run_id, attempts_left=starts_left)
            except DfmError as error:
                logger.error("run %s: %s", run_id, error)  # the record tells the rest
                if starts_left():
                    raise
                runs.refused(job, run_id, error)
        record = runs.read_run(job.output.directory, job.data.storage_options)
    return record.state if record is not None else "lost"


def _key(run_id: str) -> str:
    return f"drive_run-{run_id}"


def _starts_left(client: Client, key: str) -> int:
    """1 where this driver has ended because its worker closes, which closes its client, and the scheduler will start it
    on another one; else 0. A cluster that is restarted forgets its tasks.
    """
    worker = get_worker()
    if client.status == "running" and worker.status in WORKER_ANY_RUNNING:
        return 0

    async def ask() -> str | None:
        secured = worker.security.get_connection_args("worker")
        async with rpc(worker.scheduler.address, connection_args=secured) as scheduler:
            states: dict[str, str | None] = await scheduler.get_task_status(keys=[key])
            return states[key]

    try:  # by a connection of its own: those of worker and client are closed
        return int(asyncio.run(asyncio.wait_for(ask(), _ANSWER_SECONDS)) in _TO_BE_RUN)
    except (OSError, TimeoutError):
        return 0


def submitted_to(client: Client) -> dict[str, str]:
    """Output directories of the runs that were handed to a scheduler, by run id."""
    found: dict[str, str] = client.get_metadata([_BOOK], default={})
    return dict(found)


def with_absolute_paths(job: Job) -> Job:
    """The job with local paths in full: another process stands in another folder."""
    data, output, training = job.data, job.output, job.training
    warm_start = files.absolute(training.warm_start) if training.warm_start else ""
    return dataclasses.replace(
        job,
        data=dataclasses.replace(
            data,
            train=tuple(files.absolute(path) for path in data.train),
            validation=tuple(files.absolute(path) for path in data.validation),
        ),
        output=dataclasses.replace(output, directory=files.absolute(output.directory)),
        training=dataclasses.replace(training, warm_start=warm_start),
    )


def _check_paths(job: Job, client: Client) -> None:
    """SettingsError where the driver would write its output, or look for shards, on a disk that only it has."""
    if connect.shares_disk(client):
        return
    paths: dict[str, Any] = {"output.directory": [job.output.directory], "data.train": job.data.train}
    paths["data.validation"] = job.data.validation
    paths["training.warm_start"] = [job.training.warm_start] if job.training.warm_start else []
    for knob, urls in paths.items():
        for url in urls:
            if "://" not in (folder_of(url) or url):
                raise SettingsError(
                    f"{knob} = {url!r} is a path of this machine, and the workers of {client.scheduler.address} are on "
                    "others; name an object store, or write file://… for a folder that all of them share"
                )
