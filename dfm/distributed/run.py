"""The run of a job on a cluster, as far as it is known before its rows are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future

from dfm.distributed.backends import Choice
from dfm.distributed.cluster.watch import Watch
from dfm.model.warm_start import Start
from dfm.settings.job import Job
from dfm.storage import files
from dfm.training.inputs import Inputs
from dfm.training.order import Order
from dfm.training.rounds import Work

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class Ended(BaseException):
    """Raised where a training tells of an event, in a thread beside others: nobody wants any more of it."""


@dataclass(frozen=True)
class Run:
    """A job, its shards and its cluster. warm: the model that training goes on from; tell: who hears of events.

    shares_disk: whether paths mean the same to the workers as to this process.
    """

    order: Order
    inputs: Inputs
    warm: Start | None
    watch: Watch
    shares_disk: bool
    choice: Choice
    tell: OnEvent
    number: int = 0
    """Which of the job's models is trained."""
    run_id: str = ""
    """The id of the record; "" where none is kept."""

    @property
    def job(self) -> Job:
        """The settings."""
        return self.order.job

    @property
    def client(self) -> Client:
        """The client of the cluster."""
        return self.watch.client

    def of_start(self, read: Callable[[], Any]) -> Future:
        """A future of something read of the earlier model, by a worker, or by this machine where only it can."""
        only_here = self.warm is not None and files.is_local(self.warm.url) and not self.shares_disk
        return self.watch.keep(read()) if only_here else self.watch.submit(read)

    @property
    def work(self) -> Work:
        """The work of training tasks, with the backend that was chosen."""
        return self.order.work.on(self.choice.backend)
