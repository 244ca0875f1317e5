"""Triggers that wait for a run or a partition: both look at storage, and keep nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from dfm.airflow import runtime
from dfm.errors import DfmError, StorageError
from dfm.launch.process import is_lost
from dfm.runs import record as runs
from dfm.storage import files

logger = logging.getLogger(__name__)
_PROCESS_SECONDS = 120.0
"""Seconds until a driver that was submitted has to be at work as a process of this machine: no cluster has to grow."""


class DfmRunTrigger(BaseTrigger):
    """Fires once the run in an output location is over, or its driver is gone: {"state", "run_id", "directory"}.

    Its state is the record of the run, so any triggerer can go on where another one stopped. Where a user marks or
    clears the waiting task, the run is asked to stop.

    by_process: whether the driver is a process that nobody starts again (`dfm.launch.process`). run_id: of the run that
    is meant; where another one has taken its place, the state is "superseded". "": any, as in triggers of earlier
    versions, which Airflow's database may hold.
    """

    def __init__(
        self,
        directory: str,
        storage_options: Mapping[str, Any] | None = None,
        poll_interval: float = 10.0,
        by_process: bool = False,
        run_id: str = "",
    ) -> None:
        super().__init__()
        self.directory = directory
        self.storage_options = dict(storage_options or {})
        self.poll_interval = poll_interval
        self.by_process = by_process
        self.run_id = run_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path and arguments that another triggerer makes this trigger of."""
        names = ("directory", "storage_options", "poll_interval", "by_process", "run_id")
        return "dfm.airflow.triggers.DfmRunTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the record until the run is over."""
        while True:
            try:
                record = await asyncio.to_thread(runs.read_run, self.directory, self.storage_options)
            except (OSError, StorageError) as error:  # a store that is away for a moment ends no wait of hours
                self.log.warning("the record in %s cannot be read: %s", self.directory, error)
            else:
                state = _state_of(record, self.by_process, self.run_id)
                if state:
                    run_id = record.run_id if record else ""
                    yield TriggerEvent({"state": state, "run_id": run_id, "directory": self.directory})
                    return
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Ask the run to stop."""
        await asyncio.to_thread(runtime.ask_to_stop, self.directory, self.storage_options, self.run_id)


def _state_of(record: runs.RunRecord | None, by_process: bool, run_id: str) -> str:
    """The state in which a run ended, "lost" where it never will, "superseded" where another one is in its place; "" as
    long as there is hope.
    """
    if record is None:
        return "lost"
    if run_id not in ("", record.run_id):
        return "superseded"
    if record.is_over:
        return record.state
    if record.state == "submitted" and by_process:
        return "lost" if record.is_stale(_PROCESS_SECONDS) else ""
    return "lost" if is_lost(record, by_process) else ""


class DfmDaskJobTrigger(BaseTrigger):
    """Fires once the run of a DaskJob is over, or nothing can finish it: {"state", "run_id", "directory", "reason"}.

    It watches as `dfm submit --kubernetes --follow` does: what ended is proven by storage, what was lost by Kubernetes,
    and neither is concluded while one of them is away. Any triggerer that reaches both can go on where another stopped.
    """

    def __init__(
        self,
        directory: str,
        dask_job: str,
        namespace: str = "",
        storage_options: Mapping[str, Any] | None = None,
        poll_interval: float = 10.0,
    ) -> None:
        super().__init__()
        self.directory = directory
        self.dask_job = dask_job
        self.namespace = namespace
        self.storage_options = dict(storage_options or {})
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and arguments that another triggerer makes this one of."""
        names = ("directory", "dask_job", "namespace", "storage_options", "poll_interval")
        return "dfm.airflow.triggers.DfmDaskJobTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the job until it is over."""
        from dfm.kubernetes.api import Api
        from dfm.kubernetes.follow import Watch

        try:
            api = await asyncio.to_thread(Api, self.namespace)
            watch = Watch(api, self.dask_job, self.storage_options, self._note)
            while (ended := await asyncio.to_thread(watch.look)) is None:
                await asyncio.sleep(self.poll_interval)
        except DfmError as error:
            yield TriggerEvent(self._event("lost", "", str(error)))
            return
        found, state = ended
        yield TriggerEvent(self._event(found.state, state.run_id, found.reason))

    def _event(self, state: str, run_id: str, reason: str) -> dict[str, str]:
        return {"state": state, "run_id": run_id, "directory": self.directory, "reason": reason}

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] in ("waiting", "kubernetes", "retrying"):
            self.log.info("%s", event)

    async def on_kill(self) -> None:
        """End the job; its checkpoint stays."""
        from dfm.kubernetes import submit
        from dfm.kubernetes.api import Api

        def cancel() -> None:
            submit.cancel(Api(self.namespace), self.dask_job, self.storage_options)

        await asyncio.to_thread(cancel)


class PartitionTrigger(BaseTrigger):
    """Fires once a partition is complete: its marker is there, or it has enough rows."""

    def __init__(
        self,
        partition: str,
        marker: str = "_SUCCESS",
        min_rows: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        poll_interval: float = 60.0,
    ) -> None:
        super().__init__()
        self.partition = partition
        self.marker = marker
        self.min_rows = min_rows
        self.storage_options = dict(storage_options or {})
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path and arguments that another triggerer makes this trigger of."""
        names = ("partition", "marker", "min_rows", "storage_options", "poll_interval")
        return "dfm.airflow.triggers.PartitionTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the partition until it is complete."""
        while not await asyncio.to_thread(self._is_complete):
            await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"partition": self.partition})

    def _is_complete(self) -> bool:
        try:
            return is_complete(self.partition, self.marker, self.min_rows, self.storage_options)
        except (OSError, StorageError) as error:  # a store that is away for a moment ends no wait of hours
            self.log.warning("it cannot be seen whether %s is complete: %s", self.partition, error)
            return False


def is_complete(partition: str, marker: str, min_rows: int, options: dict[str, Any]) -> bool:
    """Whether a partition holds its marker or, where a number of rows is asked for, so many rows; while it does not,
    the log says what is waited for.
    """
    if not min_rows:
        where = files.join(partition, marker)
        found = files.exists(where, options)
        told = where
    else:
        n_rows = _rows_of(partition, options)
        found, told = n_rows >= min_rows, f"{min_rows:,} rows in {partition}, which has {n_rows:,}"
    if not found:
        logger.info("waiting for %s", told)
    return found


def _rows_of(partition: str, options: dict[str, Any]) -> int:
    """Rows by the footers of the shards; 0 where nothing is there yet, or a shard is still being written."""
    from dfm.data.parquet import find_shards
    from dfm.errors import DataError

    try:
        return sum(shard.n_rows for shard in find_shards([partition], options))
    except DataError:
        return 0
