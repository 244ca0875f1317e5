"""The diagnosis of a run: measured on the workers, where vocabulary, parameters and validation rows lie."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from distributed import Future

from dfm.data.partition import SparsePartition
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.prepare import Prepared
from dfm.kernels.tables import ParameterTable
from dfm.model.metrics import Tally
from dfm.settings.job import Job
from dfm.training import rounds
from dfm.training.diagnosis import (
    Finding,
    column_findings,
    count_fields,
    model_findings,
    table_finding,
    validation_findings,
)
from dfm.training.exact import draws_of
from dfm.training.exact_rounds import judge_draws
from dfm.training.exact_work import ExactWork

logger = logging.getLogger(__name__)


def linear_part(work: rounds.Work, blocks: Sequence[rounds.Block], partitions: Sequence[SparsePartition]) -> Tally:
    """Metrics of the parameters, or of the mean over draws, without factors on some rows."""
    without = [dataclasses.replace(block, table=_without_vectors(block.table)) for block in blocks]
    if isinstance(work, ExactWork):
        return judge_draws(work, without, partitions)
    return rounds.evaluate_partitions(work, without, partitions)


def _without_vectors(table: ParameterTable) -> ParameterTable:
    copied = table.copy()
    for block in copied.layout.blocks:
        if block.is_vector:
            copied[block.name][...] = 0
    return copied


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Finds out what a run could not learn; `collided_share` as its vocabulary event tells."""

    job: Job
    watch: Watch
    work: rounds.Work
    prepared: Prepared
    collided_share: float

    def findings(self, blocks: Sequence[Future], metrics: dict[str, Any]) -> list[Finding]:
        """Findings on the best parameters. Where they cannot be found out, that is a warning: the model is
        worth more than its diagnosis.
        """
        try:
            return self._found(blocks, metrics)
        except Exception as error:
            logger.warning("there is no diagnosis of this training: %s: %s", type(error).__name__, error)
            return []

    def _found(self, blocks: Sequence[Future], metrics: dict[str, Any]) -> list[Finding]:
        model, reading = self.job.model, self.prepared.reading
        names = [entry.name for entry in reading.schema.fields]
        known_counts = self.prepared.summary.by_field
        counting = None if known_counts else self.watch.submit(count_fields, self.prepared.vocabulary, names)
        # A warm start has the statistics of earlier rows, which do not say what these hold.
        known = {} if self.job.training.warm_start else reading.statistics
        linear = self._linear_metrics(blocks) if metrics and self._has_pairs else {}
        counts = known_counts if counting is None else self.watch.result(counting)
        return [
            *column_findings(reading.schema, known, counts, model.min_count, self.collided_share),
            *table_finding(self.collided_share, model.hash_bits),
            *validation_findings(metrics),
            *model_findings(self.work.objective, metrics, linear, self.job.training.solver),
        ]

    @property
    def _has_pairs(self) -> bool:
        """Whether a row can have two features, and any of them owns factors that can be left out."""
        if not (self.job.model.n_factors and self.prepared.summary.n_factored):
            return False
        fields = self.prepared.reading.schema.fields
        return len(fields) > 1 or any(entry.kind == "list" for entry in fields)

    def _linear_metrics(self, blocks: Sequence[Future]) -> dict[str, Any]:
        validation = self.prepared.validation
        blocks = draws_of(blocks) if isinstance(self.work, ExactWork) else blocks
        tallies = [self.watch.submit(linear_part, self.work, list(blocks), partitions) for partitions in validation]
        tally: Tally = self.watch.result(self.watch.submit(rounds.merge_tallies, tallies))
        return tally.metrics()
