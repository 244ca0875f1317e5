"""Click logs for the laboratory: read, hashed once and kept, then cut into the slices of any number of replicas."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm.data.building import build_partition
from dfm.data.encoding import encode_batch
from dfm.data.hashed_rows import HashedRows, concatenate_rows, take_rows
from dfm.data.parquet import Unit, arrow_schema, find_shards, read_unit
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Schema, resolve
from dfm.data.scoring_rows import scoring_partition
from dfm.data.synthetic import generate
from dfm.data.vocabulary import FeatureCounts, Vocabulary, build_vocabulary, count_features
from dfm.storage.arrays import read_arrays, write_arrays

DENSE_COLUMNS = ("C1", "C2", "C5", "C6", "C8", "C9", "C14", "C17", "C20", "C22", "C23", "C25")
"""Categories of at most 1,460 values: with the counts, a log whose features are all frequent."""

_MOST_CUTS = 3


@dataclass
class Log:
    """Training rows in the order of the log, validation rows, and the cuts made of them so far."""

    name: str
    train: HashedRows
    validation: HashedRows
    columns: tuple[str, ...]
    hash_bits: int
    _counts: FeatureCounts | None = None
    _cuts: OrderedDict[tuple[object, ...], Cut] = field(default_factory=OrderedDict)

    def cut(self, deal: Deal) -> Cut:
        """The partitions of a deal; the latest few are kept."""
        if deal not in self._cuts:
            while len(self._cuts) >= _MOST_CUTS:
                self._cuts.popitem(last=False)
            self._cuts[deal] = self._make_cut(deal)
        self._cuts.move_to_end(deal)
        return self._cuts[deal]

    def _make_cut(self, deal: Deal) -> Cut:
        if self._counts is None:
            self._counts = count_features(self.train.indices, self.train.fields, len(self.columns), self.hash_bits)
        vocabulary = build_vocabulary(
            self._counts, self.columns, self.hash_bits, deal.min_count, deal.min_count_factors
        )
        lookup = RowLookup(vocabulary)
        rng = np.random.default_rng(deal.seed)
        order = self._dealt(deal.order, rng)
        slices = []
        for replica in range(deal.n_replicas):
            own = order[_share(len(order), replica, deal.n_replicas)]
            own = rng.permutation(own)
            rows = [own[_share(len(own), number, deal.n_slices)] for number in range(deal.n_slices)]
            slices.append([build_partition(take_rows(self.train, part), vocabulary, lookup) for part in rows])
        return Cut(vocabulary, slices, scoring_partition(self.validation, lookup))

    def _dealt(self, order: str, rng: np.random.Generator) -> NDArray[np.int64]:
        """Row numbers in the order in which replicas take their stretches of them."""
        if order == "time":
            return np.arange(self.train.n_rows)
        if order == "shuffled":
            return rng.permutation(self.train.n_rows)
        column = self.columns.index(order.removeprefix("sorted:"))
        return np.argsort(self.train.indices[self.train.indptr[:-1] + column], kind="stable")


@dataclass(frozen=True)
class Deal:
    """How the rows become slices: everything that partitions depend on.

    order: replicas take stretches of the log as it is ("time"), of a shuffled one, or of one sorted by a column
    ("sorted:C7"), so that each sees its own part of that column's values. Each shuffles its rows before it slices them.
    """

    n_replicas: int
    n_slices: int
    min_count: int
    min_count_factors: int
    order: str
    seed: int


@dataclass(frozen=True)
class Cut:
    """slices[replica][round] of an epoch, and the validation rows."""

    vocabulary: Vocabulary
    slices: list[list[SparsePartition]]
    validation: SparsePartition


def _share(n_rows: int, number: int, of: int) -> slice:
    return slice(n_rows * number // of, n_rows * (number + 1) // of)


def read_log(
    name: str,
    paths: tuple[Sequence[str], Sequence[str]],
    hash_bits: int,
    cache: Path,
    columns: Sequence[str] = ("C*",),
) -> Log:
    """A log in Criteo's columns (label, I1…I13, C1…C26) from Parquet; hashed rows are kept in `cache`.

    paths: of the training rows and of the validation rows.
    """
    rows, fields_of_log = [], ()
    for part, own in zip(("train", "validation"), paths, strict=True):
        file = cache / f"{name}-{part}-{hash_bits}.safetensors"
        shards = find_shards(own)
        schema = resolve(
            Schema(label="label", categorical=tuple(columns), numeric=("I*",)), arrow_schema(shards[0]).names
        )
        fields_of_log = tuple(entry.name for entry in schema.fields)
        if not file.exists():
            encoded = [
                encode_batch(batch.data, schema, hash_bits, {}, "classification").rows
                for shard in shards
                for batch in read_unit(Unit(shard, 0, shard.n_rows), ["label", *schema.columns])
            ]
            write_arrays(file, {f.name: getattr(concatenate_rows(encoded), f.name) for f in fields(HashedRows)})
        rows.append(HashedRows(**read_arrays(file)[0]))
    return Log(name, rows[0], rows[1], fields_of_log, hash_bits)


def synthetic_log(name: str, n_rows: int, hash_bits: int, cache: Path, columns: Sequence[str] = ("C*",)) -> Log:
    """A generated log: seven days to train on, the eighth to validate."""
    root = cache / f"synthetic-{n_rows}"
    if not (root / "truth.json").exists():
        generate(root, rows=n_rows, days=8, overwrite=True)
    days = sorted(str(path) for path in root.glob("day=*"))
    return read_log(f"{name}-{n_rows}", (days[:-1], days[-1:]), hash_bits, cache, columns)
