"""Averaging on a GPU: tables and summands stay on the device, and are merged there with the CPU's arithmetic.

`OnGpu` does what `averaging.OnProcessors` does. A round of one GPU moves no parameters at all; summands of another
worker's replicas come as a `Contribution` through the host, and ours leave as one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import Contribution, fold
from dfm.averaging.merge import Columns, columns_of, finish_of, finish_shared, growth, shares_of, summand_width
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices, Touched
from dfm.data.partition import SparsePartition
from dfm.kernels.blocks import Block
from dfm.kernels.contract import Step
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu.composition import RATES, RATES_TEXT, compose
from dfm.kernels.gpu.memory import Buffer, Program
from dfm.kernels.gpu.tables import Gpu, GpuArrays, GpuTable
from dfm.kernels.tables import Floats, Layout, ParameterTable, first_at, local_shapes, pull_plan

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
"""Threads of a block."""
MOST_BLOCKS = 4096
FAN_IN = 4
"""Summands that are summed at a time, a power of two: so many must be on the device at once."""
CHUNK_BYTES = 1 << 28
"""Share of the device's memory that notes of where summands stand may take while they are summed."""

Summands = Any
"""`GpuSummands`, or a `Contribution` that came from another process."""

_COLUMNS = [(name, np.int32) for name in Columns._fields]
_DIVISORS = [(name, np.float32) for name in ("fixed", "history", "growth")] + [("counts", np.int32)]
PART = np.dtype([("places", np.uint64), ("summands", np.uint64), ("n_adds", np.int64)])
"""`struct Part` of the .cu."""
LAUNCH = np.dtype(
    [
        *((name, np.int64) for name in ("n", "width", "start", "n_places", "shift")),
        *((name, np.uint64) for name in ("rows", "source", "target", "places", "touched", "parts")),
        ("n_parts", np.int64),
        *((name, np.uint64) for name in ("before_numbers", "before_vectors", "after_numbers", "after_vectors")),
        *((name, np.uint64) for name in ("occurrences", "numbers", "vectors", "number_sums", "vector_sums", "drift")),
        *((name, np.int64) for name in ("number_width", "vector_width")),
        (
            "merge",
            [
                ("columns", _COLUMNS),
                ("shares", [(name, np.float32) for name in ("base", "history", "growth")]),
                ("weights", _DIVISORS),
                ("accumulators", _DIVISORS),
                ("outer", [(name, np.float32) for name in ("rate", "momentum")]),
            ],
        ),
        ("rates", [(name, np.float32) for name in RATES]),
    ],
    align=True,
)
"""Arguments of a launch: `struct Launch` of the .cu, field by field."""


def source_of(derivation: str = "") -> str:
    """The program with the text of an optimizer that derives weights, or, without one, for all others."""
    texts = {"rates": RATES_TEXT, "optimizer": derivation}
    return compose(SOURCE, {"DERIVED": int(bool(derivation))}, texts)


@dataclass(frozen=True, eq=False)
class GpuSummands:
    """Summands of one replica or more on a device: `arrays` has, by block, a row for each of the features uint32[m], or
    for the first of them. The features in [start, stop) are meant. Pickled, a `Contribution`, where the rest is told.
    """

    features: NDArray[np.uint32]
    arrays: GpuArrays
    shared: Mapping[str, NDArray[np.float64]]
    rows: float
    is_halved: bool = False
    start: int = 0
    stop: int = 1 << 32

    @property
    def nbytes(self) -> int:
        """Bytes of what would travel."""
        first, last = self.bounds()
        numbers = sum((end - first) * width for end, width in self._ends(first, last).values())
        shared = sum(array.nbytes for array in self.shared.values())
        return 4 * (last - first) + numbers * (2 if self.is_halved else 4) + shared

    def select(self, start: int, stop: int) -> GpuSummands:
        """The part that falls into rows [start, stop) of the parameter table."""
        return dataclasses.replace(self, start=max(start, self.start), stop=min(stop, self.stop))

    def bounds(self) -> tuple[int, int]:
        """Which of the features are meant."""
        first, last = first_at(self.features, [self.start, max(self.start, self.stop)])
        return int(first), int(last)

    def _ends(self, first: int, last: int) -> dict[str, tuple[int, int]]:
        """By block, the end of those of its rows that are meant, and its float32 columns."""
        return {name: (max(min(last, rows), first), width) for name, (rows, width) in self.arrays.shapes.items()}

    def on_host(self) -> Contribution:
        """The same summands in this process's memory."""
        first, last = self.bounds()
        ends = self._ends(first, last)
        touched = {name: self.arrays.part(name, first, end) for name, (end, _) in ends.items()}
        whole = Contribution(self.features[first:last], touched, self.shared, self.rows)
        return whole.halved() if self.is_halved else whole

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.on_host().__reduce__()


@dataclass
class OnGpu:
    """`averaging.Averaging` on a GPU."""

    gpu: Gpu
    _programs: dict[str, Program] = field(init=False, default_factory=dict)
    """By the text of an optimizer that derives weights, "" for all others."""
    _united: dict[tuple[int, ...], Slices] = field(init=False, default_factory=dict)
    """Results of `unite` by the slices' features: the same slices come in every later epoch."""
    _unions: dict[tuple[int, ...], NDArray[np.uint32]] = field(init=False, default_factory=dict)
    """The features of sums, by those of their parts and the rows that were meant: likewise."""

    def __post_init__(self) -> None:
        with self.gpu.taken():
            self._program_of("")

    def _program_of(self, derivation: str) -> Program:
        """The program with the text of an optimizer that derives weights, or for all others; compiled when needed."""
        if derivation not in self._programs:
            self._programs[derivation] = self.gpu.device.compile(source_of(derivation), exact=True)
        return self._programs[derivation]

    # ---------------------------------------------------------------------------------------------- tables ----

    def unite(self, slices: Sequence[SparsePartition]) -> Slices:
        """See `Slices.of`; kept as long as the slices are."""
        key = tuple(id(each.features) for each in slices)
        found = self._united.get(key)
        if found is None:
            found = Slices.of(slices)
            self._united[key] = dataclasses.replace(found, slices=())
            for each in slices:
                weakref.finalize(each.features, self._united.pop, key, None).atexit = False
        return dataclasses.replace(found, slices=tuple(slices))

    def pull(
        self, parts: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None = None
    ) -> ParameterTable:
        """See `tables.pull`."""
        plan, layout = pull_plan(parts, features, n_factored), parts[0].layout
        with self.gpu.taken():
            local = GpuTable.empty(self.gpu, layout, local_shapes(parts[0], plan))
            target, rows = self.gpu.use_table(local), self.gpu.residents.array(features)
            for number, part in enumerate(parts):
                source = self.gpu.use_table(part)
                if number == 0:
                    self._copy_blocks(layout.shared, local.arrays.shapes, source, target)
                for block in layout.touched:
                    first, last = plan.starts_of(block)[number : number + 2]
                    width, meant = layout.width(block), features[: plan.n_rows(block)]
                    begin, end = (int(at) for at in first_at(meant, [first, last]))
                    self._launch(
                        "gather_rows", (end - begin) * width, n=end - begin, width=width, start=first,
                        rows=rows.address + 4 * begin, source=source[block.name],
                        target=target[block.name].address + 4 * width * begin,
                    )  # fmt: skip
            local.arrays.changed()
        return local

    def copy(self, table: ParameterTable) -> ParameterTable:
        """See `averaging.Averaging`."""
        with self.gpu.taken():
            return self._copy(table)

    def _copy(self, table: ParameterTable) -> GpuTable:
        here = self.gpu.table(table)
        result = GpuTable.empty(self.gpu, table.layout, here.arrays.shapes)
        source, target = self.gpu.use(here.arrays), self.gpu.use_table(result)
        self._copy_blocks(table.layout.blocks, here.arrays.shapes, source, target)
        result.arrays.changed()
        return result

    def _copy_blocks(
        self,
        blocks: Iterable[Block],
        shapes: Mapping[str, tuple[int, ...]],
        source: Mapping[str, Buffer],
        target: Mapping[str, Buffer],
    ) -> None:
        """Whole arrays, of these shapes."""
        for block in blocks:
            name = block.name
            self._launch("copy_numbers", math.prod(shapes[name]), source=source[name], target=target[name])

    def put(self, local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
        """See `tables.put`."""
        layout = table.layout
        if not isinstance(table, GpuTable) or table.gpu is not self.gpu:
            raise ValueError(
                f"{table!r} is not on this GPU, and cannot be changed here; pass what `copy` or `pull` gave"
            )
        with self.gpu.taken():
            shapes = self.gpu.table(local).arrays.shapes
            source, target = self.gpu.use_table(local), self.gpu.use(table.arrays)
            places = self.gpu.residents.array(rows)
            self._copy_blocks(layout.shared, shapes, source, target)
            for block in layout.touched:
                n_rows, width = shapes[block.name]
                self._launch(
                    "scatter_rows", n_rows * width, n=n_rows, width=width, rows=places,
                    source=source[block.name], target=target[block.name],
                )  # fmt: skip
            table.arrays.changed()

    # ------------------------------------------------------------------------------------------- summands ----

    def contribute(
        self, rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable, halved: bool
    ) -> Summands:
        """See `averaging.contribute`."""
        layout, gpu = before.layout, self.gpu
        rule.check_optimizer(layout.optimizer)
        columns = {block.name: columns_of(rule, layout, block) for block in layout.blocks}
        with gpu.taken():
            olds, news, grown = gpu.use_table(before), gpu.use_table(after), gpu.table(after).arrays.shapes
            shapes = {
                block.name: (grown[block.name][0], summand_width(columns[block.name], block))
                for block in layout.touched
            }
            made = GpuArrays.empty(gpu, shapes)
            out, carrier = gpu.use(made), layout.carrier
            numbers: dict[str, Any] = {
                "before_numbers": olds[carrier.name], "after_numbers": news[carrier.name],
                "numbers": out[carrier.name], "number_width": layout.width(carrier),
            }  # fmt: skip
            if columns[carrier.name].occurrences >= 0:
                numbers["occurrences"] = gpu.send(touched.occurrences().astype(np.float32))
            for block in layout.touched:
                name, n_rows = block.name, shapes[block.name][0]
                merge = _merge(rule, layout, block, 1)
                if block.is_vector:
                    vectors: dict[str, Any] = {
                        "before_vectors": olds[name],
                        "after_vectors": news[name],
                        "vectors": out[name],
                    }
                    self._launch(
                        "contribute_vectors", n_rows * block.lanes, n=n_rows, vector_width=layout.width(block),
                        merge=merge, **vectors, **numbers,
                    )  # fmt: skip
                else:
                    self._launch("contribute_numbers", n_rows, merge=merge, **numbers)
            if halved:  # after all of them, since vectors are weighed by what their features' numbers are
                for name, shape in shapes.items():
                    self._launch("round_summands", math.prod(shape), target=out[name])
            made.changed()
            old, new = gpu.table(before).arrays, gpu.table(after).arrays
            rows = touched.total_weight
            shared = {
                block.name: rows * growth(columns[block.name], old.now(block.name), new.now(block.name))
                for block in layout.shared
            }
        return GpuSummands(touched.features, made, shared, rows, halved)

    def combine_all(self, contributions: Iterable[Summands]) -> Summands:
        """See `contributions.combine_all`; few are on the device at a time."""
        waiting: list[tuple[int, Summands]] = []  # sums of so many, each fewer than the one before
        for batch in _batches(contributions, FAN_IN):
            size, total = len(batch), self._sum(batch)
            while waiting and waiting[-1][0] == size:
                total = self._sum([waiting.pop()[1], total])
                size *= 2
            waiting.append((size, total))
        _, total = waiting.pop()
        while waiting:
            total = self._sum([waiting.pop()[1], total])
        return total

    def _sum(self, contributions: Sequence[Summands]) -> Summands:
        """The sum along their tree; of one that one, as it is."""
        if len(contributions) == 1:
            return contributions[0]
        with self.gpu.taken():
            return self._sum_now(contributions)

    def _sum_now(self, contributions: Sequence[Summands]) -> GpuSummands:
        gpu, parts = self.gpu, [self._part(each) for each in contributions]
        features, chunks = self._union(parts), self._chunks(parts)
        shapes = {}
        for name, (_, width) in parts[0].shapes.items():
            end = max(part.end_of(name) for part in parts)
            shapes[name] = int(first_at(features, [end])[0]), width
        made = GpuArrays.empty(gpu, shapes)
        out, rows = gpu.use(made), gpu.residents.array(features)
        shared_bytes = 4 * THREADS * (len(parts).bit_length() + 1)
        for start, stop in chunks:
            first, last = (int(at) for at in first_at(features, [start, stop]))
            self._note_places(parts, start, stop)
            for name, (n_rows, width) in shapes.items():
                n = max(min(last, n_rows) - first, 0)
                self._launch(
                    "sum_parts", n * width, shared_bytes, n=n, width=width, start=start,
                    rows=rows.address + 4 * first, target=out[name].address + 4 * first * width,
                    parts=self._records(parts, name), n_parts=len(parts),
                )  # fmt: skip
        made.changed()
        shared = {name: fold([each.shared[name] for each in contributions], np.add) for name in contributions[0].shared}
        return GpuSummands(features, made, shared, fold([each.rows for each in contributions], operator.add))

    def _part(self, summands: Summands) -> _Part:
        """The summands on the device, sent if they are not there."""
        if isinstance(summands, GpuSummands) and summands.arrays.gpu is not self.gpu:
            summands = summands.on_host()
        if isinstance(summands, GpuSummands):
            features, (first, last) = summands.features, summands.bounds()
            buffers, listed = self.gpu.use(summands.arrays), self.gpu.residents.array(features)
            return _Part(features, listed, first, last, summands.arrays.shapes, buffers)
        whole = summands.whole()
        shapes = {name: array.shape for name, array in whole.touched.items()}
        listed = self.gpu.send(whole.features)
        buffers = {name: self.gpu.send(array) for name, array in whole.touched.items()}
        return _Part(whole.features, listed, 0, len(whole.features), shapes, buffers)

    def _chunks(self, parts: Sequence[_Part]) -> list[tuple[int, int]]:
        """Rows of the parameter table that are summed at a time, so that notes of places stay small."""
        start = min((int(part.meant[0]) for part in parts if len(part.meant)), default=0)
        stop = max((int(part.meant[-1]) + 1 for part in parts if len(part.meant)), default=0)
        size = max(CHUNK_BYTES // (4 * len(parts)), 1)
        return [(at, min(at + size, stop)) for at in range(start, stop, size)]

    def _note_places(self, parts: Sequence[_Part], start: int, stop: int) -> None:
        """Notes of where each part's summands of the rows [start, stop) stand."""
        for part in parts:
            if part.places is None or part.n_places < stop - start:
                part.places, part.n_places = self.gpu.allocate(4 * (stop - start)), stop - start
            self._launch("forget_places", stop - start, places=part.places)
            self._launch(
                "note_places", part.last - part.first, n_places=stop - start, start=start, shift=part.first,
                rows=part.listed.address + 4 * part.first, places=part.places,
            )  # fmt: skip

    def _records(self, parts: Sequence[_Part], name: str = "") -> Buffer:
        """`struct Part` of each part: its places and, where a block is named, its summands of that."""
        records = np.zeros(len(parts), PART)
        for record, part, adds in zip(records, parts, _adds(len(parts)), strict=True):
            assert part.places is not None
            record["places"], record["n_adds"] = part.places.address, adds
            record["summands"] = part.buffers[name].address if name else 0
        return self.gpu.send(records)

    def _union(self, parts: Sequence[_Part]) -> NDArray[np.uint32]:
        """The features that any part has, ascending; remembered as long as the parts' own lists are there."""
        parts = [part for part in parts if len(part.meant)]
        key = tuple(number for part in parts for number in (id(part.features), part.first, part.last))
        if key in self._unions:
            return self._unions[key]
        found = [np.zeros(0, np.uint32)]
        for start, stop in self._chunks(parts):
            self._note_places(parts, start, stop)
            records, room = self._records(parts), self.gpu.allocate(stop - start)
            self._launch("note_touched", stop - start, touched=room, parts=records, n_parts=len(parts))
            touched = np.empty(stop - start, np.uint8)
            self.gpu.device.fetch(room, touched)
            found.append((np.flatnonzero(touched) + start).astype(np.uint32))
        features = np.concatenate(found)
        self._unions[key] = features
        for part in parts:
            weakref.finalize(part.features, self._unions.pop, key, None).atexit = False
        return features

    def finalise(
        self,
        rule: MergeRule,
        block: ParameterTable,
        start: int,
        contribution: Summands,
        n_replicas: int,
        step: Step,
        momentum: ParameterTable | None = None,
    ) -> tuple[ParameterTable, ParameterTable | None]:
        """See `averaging.finalise`."""
        layout, gpu = block.layout, self.gpu
        with gpu.taken():
            total = self._part(contribution.select(start, start + block.n_features))
            merged, drift = self._copy(block), self._next_momentum(rule, block, momentum)
            for each in reversed(layout.touched):  # vectors first: see `merge.finalise`
                self._finish(each, _merge(rule, layout, each, n_replicas), total, start, (merged, drift), step)
            shared = [self._finished(rule, layout, each, contribution, step, (block, drift)) for each in layout.shared]
            for table, arrays in zip((merged, drift), zip(*shared, strict=True), strict=True):
                if table is not None:
                    table.arrays.changed()
                    for each, array in zip(layout.shared, arrays, strict=True):
                        table.arrays.replace(each.name, array)
        return merged, drift

    def _finish(
        self, block: Block, merge: Any, total: _Part, start: int, tables: tuple[GpuTable, GpuTable | None], step: Step
    ) -> None:
        """Move the touched rows of a block of the first table; the second holds their momentum, if there is one."""
        (merged, drift), layout, name = tables, tables[0].layout, block.name
        carrier, new, n_rows = layout.carrier.name, self.gpu.use(merged.arrays), total.n_rows(name)
        numbers: dict[str, Any] = {
            "start": start, "rows": total.listed.address + 4 * total.first,
            "numbers": new[carrier], "number_sums": total.at(carrier), "number_width": layout.width(layout.carrier),
            "merge": merge,
            "rates": tuple(getattr(step, name) for name in RATES),
        }  # fmt: skip
        if drift is not None:
            numbers["drift"] = self.gpu.use(drift.arrays)[name]
        if block.is_vector:
            vectors: dict[str, Any] = {
                "vectors": new[name],
                "vector_sums": total.at(name),
                "vector_width": layout.width(block),
            }
            self._launch("finish_vectors", n_rows * block.lanes, n=n_rows, **vectors, **numbers)
        else:
            derivation = str(layout.rule.cuda) if layout.rule.derives_weights and block.is_linear else ""
            self._launch("finish_numbers", n_rows, program=self._program_of(derivation), **numbers)

    def _finished(
        self,
        rule: MergeRule,
        layout: Layout,
        block: Block,
        total: Summands,
        step: Step,
        tables: tuple[ParameterTable, GpuTable | None],
    ) -> tuple[Floats, Floats]:
        """Records of a block that belong to no feature, moved, and their momentum: on the host, for they are few."""
        before, drift = tables
        records = np.array(self.gpu.table(before).arrays.now(block.name))
        momentum = np.array(drift.arrays.now(block.name)) if drift is not None else np.zeros(0, np.float32)
        finish_shared(rule, layout, block, total, step, (records, momentum))
        return records, momentum

    def _next_momentum(
        self, rule: MergeRule, block: ParameterTable, momentum: ParameterTable | None
    ) -> GpuTable | None:
        """The table that takes the new momentum, holding the old one; None where the rule has none."""
        if not rule.outer_momentum:
            return None
        if momentum is not None:
            return self._copy(momentum)
        layout = block.layout.stateless
        zeros = GpuTable.empty(self.gpu, layout, layout.shapes(block.n_features, block.n_factored, block.n_fields))
        for name, buffer in self.gpu.use(zeros.arrays).items():
            self._launch("clear_numbers", math.prod(zeros.arrays.shapes[name]), target=buffer)
        zeros.arrays.changed()
        return zeros

    def _launch(
        self, kernel: str, n_items: int, shared_bytes: int = 0, program: Program | None = None, **fields: Any
    ) -> None:
        """Queue a kernel over so many items, of the program for all unless another is given; buffers stand for their
        addresses, `n` is n_items unless it is given.
        """
        if n_items <= 0:
            return
        record = np.zeros(1, LAUNCH)
        for name, value in {"n": n_items, **fields}.items():
            record[name] = getattr(value, "address", value)
        room = self.gpu.send(record)
        blocks = min(-(-n_items // THREADS), MOST_BLOCKS)
        (program or self._program_of("")).launch(kernel, (blocks, THREADS), shared_bytes, room)


@dataclass
class _Part:
    """The summands of a part on the device: by block, those of features[first:last] in rows of a buffer that has a row
    for each of the features, or for the first of them. listed: the features there; places: notes of where the summands
    of a row of the table stand, made when they are summed.
    """

    features: NDArray[np.uint32]
    listed: Buffer
    first: int
    last: int
    shapes: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, Buffer]
    places: Buffer | None = None
    n_places: int = 0

    @property
    def meant(self) -> NDArray[np.uint32]:
        """The features of the part."""
        return self.features[self.first : self.last]

    def n_rows(self, name: str) -> int:
        """Number of them that a block has a row for."""
        return max(min(self.last, self.shapes[name][0]) - self.first, 0)

    def end_of(self, name: str) -> int:
        """Row of the parameter table after the last of these."""
        return int(self.meant[self.n_rows(name) - 1]) + 1 if self.n_rows(name) else 0

    def at(self, name: str) -> int:
        """Address of the first of these rows."""
        return self.buffers[name].address + 4 * self.first * self.shapes[name][1]


def _batches(items: Iterable[Summands], size: int) -> Iterator[list[Summands]]:
    """So many at a time; the last may be fewer."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _adds(n_parts: int) -> list[int]:
    """Number of the tree's sums that are complete after each part."""
    if n_parts == 1:
        return [0]
    middle = 1 << (n_parts - 1).bit_length() - 1
    left, right = _adds(middle), _adds(n_parts - middle)
    return [*left, *right[:-1], right[-1] + 1]


def _merge(rule: MergeRule, layout: Layout, block: Block, n_replicas: int) -> tuple[Any, ...]:
    """`struct Merge` of the .cu."""
    numbers = finish_of(rule, layout, block, n_replicas)
    parts = numbers.columns, shares_of(rule), numbers.weights, numbers.accumulators, numbers.outer
    return tuple(tuple(part) for part in parts)


_lock = threading.Lock()
_of_process: list[OnGpu] = []


def of_process() -> OnGpu:
    """Averaging on the GPU of this process. ClusterError where there is none."""
    gpu = cupy_gpu.gpu_of_process()
    with _lock:
        if not _of_process or _of_process[0].gpu is not gpu:
            _of_process[:] = [OnGpu(gpu)]
        return _of_process[0]
