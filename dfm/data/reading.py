"""The way in which rows are read: what every task needs to know, and which rows of a shard are left to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.derive import without_missing
from dfm.data.draw import Draw, Sampling
from dfm.data.parquet import Batch, Unit, naming_shard, read_unit
from dfm.data.schema import ResolvedSchema
from dfm.data.targets import labels_of, teaching_rows
from dfm.data.time_split import at_or_after
from dfm.data.transforms import NumberStatistics
from dfm.data.units import RowUnits
from dfm.errors import DataError

CACHE_FORMAT = 11
"""Part of every cache key: raise it when the bytes of a cached file change their meaning."""


@dataclass(frozen=True)
class Reading:
    """The way in which rows are read: what every task needs to know, and all that decides the hashed bytes."""

    schema: ResolvedSchema
    hash_bits: int
    task: str
    statistics: Mapping[str, NumberStatistics] = field(default_factory=dict)
    time_from: str = ""
    """Keep only rows whose time is this or later; empty: no such bound."""
    time_until: str = ""
    """Keep only rows whose time is before this; empty: no such bound."""
    draw: Draw | None = None
    """Keep only rows that were drawn, or those that were not."""
    on_bad_rows: str = "error"
    cache: str = ""
    units: RowUnits = field(default_factory=RowUnits)
    """In which partitions hold labels and weights; hashed rows have those of the data."""
    clip: tuple[float, float] | None = None
    """The range that the model's predictions are to stay in."""
    label_kind: str = ""
    """Which labels are legal, where the task does not say all: "counts" are 0 or more."""
    groups: tuple[int, ...] = ()
    """The group of each field, by which the entries of partitions are put in order; none: they are not."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    negative_rate: float = 1.0
    """The share of negative rows that the data still have; hashed rows and partitions know nothing of it."""
    sampling: Sampling | None = None
    """The negative rows that stay when rows are hashed; None: all."""
    group_column: str = ""
    """The column by whose values rows are told apart into groups; empty: nobody asks for it. Rows that are dealt into
    slices then stay together by group.
    """
    share_aside: float = 0.0
    """The share of rows that are kept as they are beside the hashed ones, for whoever looks at them later."""

    @property
    def share_of_negatives(self) -> float:
        """The share of the full stream's negative rows that is trained on."""
        return self.negative_rate * (self.sampling.share if self.sampling else 1.0)

    @property
    def columns_aside(self) -> list[str]:
        """Columns of rows that are kept as they are: label, weight and features."""
        special = [name for name in (self.schema.label, self.schema.weight) if name]
        return list(dict.fromkeys([*special, *self.schema.columns]))

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        special = (
            self.schema.label,
            self.schema.weight,
            self.schema.time if self.time_from or self.time_until else "",
            self.group_column,
        )
        return list(dict.fromkeys([column for column in special if column] + list(self.schema.columns)))

    @property
    def kind_of_labels(self) -> str:
        """The kind of labels that are legal, one of LABEL_KINDS."""
        return self.label_kind or self.task

    @property
    def columns_to_choose(self) -> list[str]:
        """Columns by which rows are chosen."""
        by_time = self.draw is None and (self.time_from or self.time_until)
        chosen_by = self.schema.time if by_time else self.draw.group if self.draw else ""
        return [chosen_by] if chosen_by else []

    def key(self) -> str:
        """Fingerprint of what decides the hashed bytes."""
        statistics = {name: dataclasses.asdict(value) for name, value in self.statistics.items()}
        return fingerprint(
            CACHE_FORMAT,
            self.schema.to_dict(),
            self.hash_bits,
            self.kind_of_labels,
            statistics,
            self.time_from,
            self.time_until,
            dataclasses.astuple(self.draw) if self.draw else (),
            *((dataclasses.astuple(self.sampling),) if self.sampling else ()),
            *(("group", self.group_column) if self.group_column else ()),
            *(("aside", self.share_aside) if self.share_aside else ()),
        )


def fingerprint(*parts: Any) -> str:
    """sha256 (hex) of JSON-ready values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def units_key(units: Sequence[Unit]) -> list[Any]:
    """The identity of the rows of some units: path, size and time of their files, by which place lots are drawn for
    them, and the rows' range.
    """
    return [[*unit.shard.identity, unit.shard.place, unit.start, unit.stop] for unit in units]


def kept_batches(
    reading: Reading, unit: Unit, columns: list[str], as_text: Set[str] = frozenset(), at_a_time: int = 0
) -> Iterator[Batch]:
    """Batches of the unit, without the rows that others train or validate on. as_text, at_a_time: as of `read_unit`."""
    wanted = list(dict.fromkeys([*columns, *reading.columns_to_choose]))
    for batch in read_unit(unit, wanted, reading.storage_options, as_text, at_a_time):
        yield _chosen(reading, batch)


def teaching_batches(reading: Reading, unit: Unit, columns: list[str], at_a_time: int = 0) -> Iterator[Batch]:
    """The same without the rows that label or weight keep from being trained on, which are read where there may be
    such: rows have weights, or bad ones are skipped. at_a_time: as of `read_unit`.
    """
    schema = reading.schema
    told = [schema.label, schema.weight] if schema.weight or reading.on_bad_rows == "skip" else []
    wanted = list(dict.fromkeys([*columns, *filter(None, told)]))
    for batch in kept_batches(reading, unit, wanted, at_a_time=at_a_time):
        if told:
            with naming_shard(batch):
                batch = _kept(batch, teaching_rows(batch.data, schema, reading.kind_of_labels))
        yield batch


def batches_of_each(
    readings: Sequence[Reading], unit: Unit, as_text: Set[str] = frozenset()
) -> Iterator[tuple[Batch, ...]]:
    """Batches of the unit, which is read once, with all columns of some readings: the rows that are left to each.

    The readings differ in which rows that are, and ask the same store.
    """
    wanted = [name for reading in readings for name in (*reading.columns, *reading.columns_to_choose)]
    for batch in read_unit(unit, list(dict.fromkeys(wanted)), readings[0].storage_options, as_text):
        yield tuple(_chosen(reading, batch) for reading in readings)


def _chosen(reading: Reading, batch: Batch) -> Batch:
    """The rows of a batch that are left to a reading."""
    with naming_shard(batch):
        if reading.draw is not None:
            return _kept(batch, reading.draw.keeps(batch))
        if reading.time_from or reading.time_until:
            keep = _in_span(batch.data.column(reading.schema.time), reading)
            return _kept(batch, keep.to_numpy(zero_copy_only=False))
    return batch


def _kept(batch: Batch, keep: NDArray[np.bool_]) -> Batch:
    """The rows of a batch for which `keep` (bool[n_rows]) holds."""
    before = np.arange(batch.data.num_rows) if batch.kept is None else batch.kept
    return dataclasses.replace(batch, data=batch.data.filter(pa.array(keep)), kept=before[keep])


def sampled_batch(batch: Batch, reading: Reading, kind: str) -> Batch:
    """The batch without the negative rows that are left out. DataError where a label is a share: part of its row is
    negative, and fewer rows of label 0 beside it would not multiply all odds alike.
    """
    if reading.sampling is None:
        return batch
    labels, is_sound = labels_of(batch.data, reading.schema, kind)
    shares = is_sound & (labels > 0) & (labels < 1)
    if shares.any():
        row = int(shares.argmax())
        raise DataError(
            f"row group {batch.row_group}, row {batch.place_of(row)}: column {reading.schema.label!r} holds the share "
            f"{labels[row]:g}, and data.sample_negatives = {reading.sampling.share:g} leaves out rows of label 0 "
            "alone: predictions would be too low. Leave data.sample_negatives out, or write labels of 0 and 1"
        )
    return _kept(batch, reading.sampling.keeps(batch, (labels == 0) & is_sound))


def _in_span(column: pa.Array, reading: Reading) -> pa.Array:
    """Rows to keep; a missing time, also by what `schema.missing` lists, counts as the earliest."""
    column = without_missing(column, reading.schema.missing)
    keep = pa.array(np.ones(len(column), np.bool_))
    if reading.time_from:
        keep = at_or_after(column, reading.time_from, reading.schema.time)
    if reading.time_until:
        keep = pc.and_(keep, pc.invert(at_or_after(column, reading.time_until, reading.schema.time)))
    return keep
