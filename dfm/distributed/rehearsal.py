"""Most of a job's kernels, compiled before its rows need them: some of the rows are prepared, a round of none is
trained, and the rows are scored by a model of nothing.

Workers with a common disk find what others have compiled. Every other one begins at the other end, so that two share
the work.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfm.data.building import build_partition
from dfm.data.chunks import Chunk, check_chunk, hashed_in_memory
from dfm.data.coded_rows import CodedRows, without_codes
from dfm.data.hashed_rows import HashedRows
from dfm.data.parquet import Unit
from dfm.data.partition import by_group
from dfm.data.reading import Reading
from dfm.data.row_lookup import RowLookup
from dfm.data.scoring_rows import scoring_partition
from dfm.data.vocabulary import FeatureTally, Vocabulary, build_vocabulary, merge_counts
from dfm.kernels.tables import InitialValues
from dfm.model.drift import Watcher
from dfm.model.fm_model import FMModel
from dfm.storage.transfers import sum_of_bits
from dfm.storage.xxhash import hash_bytes
from dfm.training import exact, rounds
from dfm.training.exact_work import ExactWork
from dfm.training.publish import golden_rows
from dfm.training.rounds import Work

logger = logging.getLogger(__name__)
_ROWS, _HASH_BITS = 1 << 11, 20
"""Rows that are prepared, and bits of their features."""
_IDLE = 1.5
"""Seconds below which nothing was compiled: then hardly anything else has to be."""


@dataclass(frozen=True)
class Wanted:
    """Parts of a job that not every job has: a report on the model, hashing tasks of few rows, rounds that are trained
    together.
    """

    report: bool = True
    few_rows: bool = True
    together: bool = False


def warm_up(
    work: Work | ExactWork,
    reading: Reading,
    units: Sequence[Unit],
    n_slices: int = 1,
    n_models: int = 1,
    place: int = 0,
    wanted: Wanted = Wanted(),
) -> float:
    """Compile in this process most of what a job needs; returns the seconds that it took.

    units: one that has rows to prepare, or none. n_slices, n_models: see `rounds.calls_of_a_round`. place: among
    workers with a common disk. wanted: of what only some jobs have.
    """
    started = time.perf_counter()
    rows = _Rows(reading, units, wanted.few_rows)
    steps: list[Callable[[], object]]
    if isinstance(work, ExactWork):
        steps = [lambda: exact.warm_up(work), rows.watch, rows.prepare]
    else:
        walk, judge, *average = rounds.calls_of_a_round(work, n_slices, n_models, wanted.together)

        def since() -> float:
            return time.perf_counter() - started

        score = [lambda: rows.score(work, since())] if wanted.report else []
        # Neighbours share kernels: who would have to wait for one that another compiles has something else to do.
        steps = [walk, *average, rows.watch, lambda: rows.keep(work, since()), *score, judge, rows.prepare]
    for step in reversed(steps) if place % 2 else steps:
        step()
    return time.perf_counter() - started


@contextlib.contextmanager
def _told_if_in_vain() -> Iterator[None]:
    """Errors of the block are noted for who looks for them, and no more: what is not compiled now is compiled later."""
    try:
        yield
    except Exception as error:
        logger.debug("not rehearsed: %s: %s", type(error).__name__, error)


class _Rows:
    """The first rows of some units. Whatever is wrong with them is told by tasks that need them."""

    def __init__(self, reading: Reading, units: Sequence[Unit], has_few: bool = True) -> None:
        self._units = [Unit(unit.shard, unit.start, min(unit.stop, unit.start + _ROWS)) for unit in units]
        if FeatureTally.fits(reading.hash_bits):  # the same code as of the many features that there may be
            reading = replace(reading, hash_bits=min(reading.hash_bits, _HASH_BITS))
        self._reading, self._has_few, self._n_rows = reading, has_few, sum(unit.n_rows for unit in units)

    @functools.cached_property
    def _chunk(self) -> Chunk:
        return self._hashed(has_codes=True)

    def _hashed(self, has_codes: bool) -> Chunk:
        return hashed_in_memory(self._reading, self._units, 1, (0,), has_codes)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        bits, names = self._reading.hash_bits, [entry.name for entry in self._reading.schema.fields]
        return build_vocabulary(merge_counts([self._chunk.counts] * 2, bits), names, bits, 2, 2)

    def prepare(self) -> None:
        """Make partitions of them, in memory: of coded rows, as of many, and, where these had to wait and not all come
        so, of rows side by side.
        """
        with _told_if_in_vain():
            hash_bytes(b"of cached files")
            started, rows = time.perf_counter(), self._chunk.rows
            self._build(self._chunk)
            come_so = isinstance(rows, CodedRows) and rows.are_few_codes(self._n_rows) and not self._has_few
            if not come_so and time.perf_counter() - started >= _IDLE:
                self._build(self._hashed(has_codes=False))

    def _build(self, chunk: Chunk) -> None:
        check_chunk(chunk, self._reading, 1)
        parts = [chunk.rows, *_colliding(chunk.rows)]
        order = np.arange(sum(part.n_rows for part in parts))
        partition = build_partition(parts, self._vocabulary, RowLookup(self._vocabulary), order)
        by_group(partition, self._reading.groups).check()

    def watch(self) -> None:
        """Look at them as a model remembers rows, and at what travels between workers."""
        with _told_if_in_vain():
            sum_of_bits([np.zeros(1 << 17, np.uint64)])
            known = self._vocabulary, self._reading.schema, self._reading.statistics, RowLookup(self._vocabulary)
            Watcher.of(*known).sights(self._chunk.rows)

    def keep(self, work: Work, seconds: float) -> None:
        """Score some as those who publish a model do. seconds: that were waited until now."""
        if seconds >= _IDLE and self._units:
            with _told_if_in_vain():
                golden_rows(self._model(work), self._reading, self._units[0])

    def score(self, work: Work, seconds: float) -> None:
        """Score some as those who report on a model do. seconds: that were waited until now."""
        if seconds >= _IDLE and self._units:
            with _told_if_in_vain():
                rows = self._chunk.rows.hashed()
                scoring_partition(
                    replace(rows, values=np.ones(len(rows.indices), np.float32)), self._model(work).lookup
                )

    def _model(self, work: Work) -> FMModel:
        """A model that has learnt nothing."""
        vocabulary = self._vocabulary
        block = rounds.initial_block(vocabulary, work.layout, (0, vocabulary.n_features), InitialValues(0))
        about = self._reading.schema, self._reading.task, vocabulary, rounds.whole_table([block])
        return FMModel(*about, self._reading.statistics, {}, work.objective.info)


def _colliding(rows: HashedRows | CodedRows) -> list[CodedRows]:
    """A row whose entries share an index, beside coded ones: any job has some, and the first rows may have none."""
    if not isinstance(rows, CodedRows) or not rows.n_rows:
        return []
    one = rows.hashed().slice(0, 1)
    found = without_codes(replace(one, indices=np.full_like(one.indices, one.indices[0])), rows.n_fields)
    return [found] if found else []
