"""A fit's rounds on a cluster: partitions lie on its workers, rounds are the tasks of every job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, get_client

from dfm.data.partition import SparsePartition
from dfm.distributed import backends
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.prepare import home_of
from dfm.errors import ClusterError
from dfm.kernels.contract import RoundTally
from dfm.kernels.tables import ParameterTable
from dfm.model.metrics import Tally
from dfm.training import rounds
from dfm.training.fitting import Recipe, tally_of

_PATIENCE = 60.0
"""Seconds without any worker after which a fit gives up."""


def watch_of(client: Client | None) -> Watch:
    """The given client, or the current one, watched. ClusterError where there is none."""
    try:
        return Watch(get_client() if client is None else client, _PATIENCE)
    except ValueError as error:  # of get_client
        raise ClusterError(
            "a fit on a Dask collection runs on a cluster: start one (dask.distributed.Client()) or pass client="
        ) from error


def scatter_replicas(watch: Watch, replicas: Sequence[Sequence[SparsePartition]]) -> list[Future]:
    """Partitions that lie here, sent to the workers that will train on them; per replica a list of them."""
    client, homes = watch.client, watch.addresses()
    placed = []
    for number, partitions in enumerate(replicas):
        home = home_of(number, len(replicas), homes)
        sent = [client.scatter(partition, workers=[home], hash=False) for partition in partitions]
        placed.append(client.submit(list, sent, workers=[home], allow_other_workers=True, pure=False))
    return placed


_LONGEST_LINEAGE = 64
"""Rounds that a lost block may have to be computed again from, and that the scheduler has to remember."""


@dataclass
class DaskCrew:
    """Trains on a cluster: the rounds of every job. replicas, held_out: futures of lists of partitions."""

    watch: Watch
    replicas: list[Future]
    held_out: list[Future] = field(default_factory=list)
    _block: Future = field(init=False)
    _resources: Mapping[str, float] | None = field(init=False, default=None)
    """What a training task takes of its worker: see `backends`."""
    _reports: list[Future] = field(init=False, default_factory=list)
    _lineage: int = field(init=False, default=0)

    @property
    def client(self) -> Client:
        """The client of the cluster."""
        return self.watch.client

    @property
    def validates(self) -> bool:
        """Whether there are held-out rows."""
        return bool(self.held_out)

    def placed(self, work: rounds.Work) -> rounds.Work:
        """With a backend that all workers have."""
        backend = backends.choose(self.client, work.backend, work.spec, self.watch.addresses())
        self._resources = backend.resources
        return dataclasses.replace(work, backend=backend.name)

    def start(self, work: rounds.Work, table: ParameterTable) -> None:
        """Begin with these parameters."""
        self._scatter(table)

    def _scatter(self, table: ParameterTable) -> None:
        """Every worker gets a copy, since nobody could compute them again."""
        self._block = self.client.scatter([rounds.Block(0, table)], hash=False, broadcast=True)[0]
        self._lineage = 0

    def round(self, work: rounds.Work, slice_number: int) -> None:
        """Submit one round; nothing is waited for, the next one depends on its result."""
        homes, n_replicas = self.watch.addresses(), len(self.replicas)
        pushes = [
            self.client.submit(
                rounds.train_replicas, work, group.start, range(slice_number, slice_number + 1), [self._block],
                self.replicas[group.start : group.stop],
                workers=[home_of(group.start, n_replicas, homes)], allow_other_workers=True, pure=False,
                resources=self._resources,
            )
            for group in self.watch.groups(n_replicas, work.backend)
        ]  # fmt: skip
        self._block = self.client.submit(
            rounds.merge_block, work, self._block, pushes,
            workers=homes[:1], allow_other_workers=True, pure=False,
        )  # fmt: skip
        self._reports.append(self.client.submit(rounds.reports_of, self._block, pure=False))
        self._lineage += 1

    def tallies(self) -> list[RoundTally]:
        """What the rounds since the last call saw."""
        tallies = [report.tally for future in self._reports for report in self.watch.result(future)]
        self._reports = []
        if self._lineage >= _LONGEST_LINEAGE:
            self._scatter(self.parameters())
        return tallies

    def evaluate(self, recipe: Recipe) -> dict[str, Any]:
        """Metrics on the held-out rows; empty where there are none."""
        if not self.held_out:
            return {}
        tallies = [
            self.client.submit(tally_of, recipe, [self._block], partitions, pure=False) for partitions in self.held_out
        ]
        tally: Tally = self.watch.result(self.client.submit(rounds.merge_tallies, tallies, pure=False))
        return tally.metrics()

    def parameters(self) -> ParameterTable:
        """The parameters, brought here."""
        table: ParameterTable = self.watch.result(self.client.submit(_table_of, self._block, pure=False))
        return table.copy()


def _table_of(block: rounds.Block) -> ParameterTable:
    return block.table
