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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import Contribution, fold
from dfm.averaging.merge import Columns, bias_growth, columns_of, finish_bias, finish_of, shares_of
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices, Touched
from dfm.data.partition import SparsePartition
from dfm.kernels.contract import Step
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu.memory import Buffer, Program
from dfm.kernels.gpu.tables import Gpu, GpuArrays, GpuTable
from dfm.kernels.optimizers import rates_of
from dfm.kernels.tables import Layout, ParameterTable, pull_plan

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
"""Of a block."""
MOST_BLOCKS = 4096
FAN_IN = 4
"""Summands that are summed at a time, a power of two: so many must be on the device at once."""
CHUNK_BYTES = 1 << 28
"""Of the device's memory that notes of where summands stand may take while they are summed."""

Summands = Any
"""`GpuSummands`, or a `Contribution` that came from another process."""

_COLUMNS = [(name, np.int32) for name in Columns._fields]
_DIVISORS = [(name, np.float32) for name in ("fixed", "history", "growth")] + [("counts", np.int32)]
PART = np.dtype([*((name, np.uint64) for name in ("places", "linear", "factors")), ("n_adds", np.int64)])
"""`struct Part` of the .cu."""
LAUNCH = np.dtype(
    [
        *((name, np.int64) for name in ("n", "width", "start", "n_places", "shift")),
        *((name, np.uint64) for name in ("rows", "source", "target", "places", "touched", "parts")),
        ("n_parts", np.int64),
        *((name, np.uint64) for name in ("before_linear", "before_factors", "after_linear", "after_factors")),
        *((name, np.uint64) for name in ("occurrences", "linear", "factors", "linear_sums", "factor_sums")),
        *((name, np.uint64) for name in ("linear_drift", "factor_drift")),
        *((name, np.int64) for name in ("linear_width", "factor_width", "drift_lanes")),
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
        ("ftrl", [*((name, np.float32) for name in ("learning_rate", "l1", "l2", "beta")), ("is_used", np.int32)]),
    ],
    align=True,
)
"""What a kernel is told: `struct Launch` of the .cu, field by field."""


@dataclass(frozen=True, eq=False)
class GpuSummands:
    """Summands of one replica or more on a device: `arrays` has a row of `linear` for each of the features uint32[m],
    and one of `factors` for the first of them. The features in [start, stop) are meant. Pickled, a `Contribution`.
    """

    features: NDArray[np.uint32]
    arrays: GpuArrays
    bias: NDArray[np.float64]
    rows: float
    is_halved: bool = False
    start: int = 0
    stop: int = 1 << 32

    @property
    def n_factored(self) -> int:
        """How many of the features own factors."""
        return self.arrays.shapes["factors"][0]

    @property
    def widths(self) -> tuple[int, int]:
        """float32 numbers of a row of `linear`, and of `factors`."""
        return self.arrays.shapes["linear"][1], self.arrays.shapes["factors"][1]

    @property
    def nbytes(self) -> int:
        """Bytes of what would travel."""
        (first, last), (linear, factors) = self.bounds(), self.widths
        numbers = (last - first) * linear + self._owners() * factors
        return 4 * (last - first) + numbers * (2 if self.is_halved else 4) + self.bias.nbytes

    def select(self, start: int, stop: int) -> GpuSummands:
        """The part that falls into rows [start, stop) of the parameter table."""
        return dataclasses.replace(self, start=max(start, self.start), stop=min(stop, self.stop))

    def bounds(self) -> tuple[int, int]:
        """Which of the features are meant."""
        first, last = np.searchsorted(self.features, [self.start, max(self.start, self.stop)])
        return int(first), int(last)

    def _owners(self) -> int:
        first, last = self.bounds()
        return max(min(last, self.n_factored) - first, 0)

    def on_host(self) -> Contribution:
        """The same summands in this process's memory."""
        first, last = self.bounds()
        linear = self.arrays.part("linear", first, last)
        factors = self.arrays.part("factors", first, first + self._owners())
        whole = Contribution(self.features[first:last], linear, factors, self.bias, self.rows)
        return whole.halved() if self.is_halved else whole

    def __reduce__(self) -> tuple[Callable[..., Contribution], tuple[Any, ...]]:
        host = self.on_host()
        return Contribution, (host.features, host.linear, host.factors, host.bias, host.rows)


@dataclass
class OnGpu:
    """`averaging.Averaging` on a GPU."""

    gpu: Gpu
    _program: Program = field(init=False)
    _united: dict[tuple[int, ...], Slices] = field(init=False, default_factory=dict)
    """What `unite` found, by the slices' features: the same slices come in every later epoch."""
    _unions: dict[tuple[int, ...], NDArray[np.uint32]] = field(init=False, default_factory=dict)
    """The features of sums, by those of their parts and the rows that were meant: likewise."""

    def __post_init__(self) -> None:
        with self.gpu.taken():
            self._program = self.gpu.device.compile(SOURCE.read_text(encoding="utf-8"), exact=True)

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
        self, blocks: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None = None
    ) -> ParameterTable:
        """See `params.pull`."""
        starts, factor_starts, owning = pull_plan(blocks, features, n_factored)
        layout = blocks[0].layout
        with self.gpu.taken():
            local = GpuTable.empty(self.gpu, layout, len(features), owning)
            target, rows = self.gpu.use_table(local), self.gpu.residents.array(features)
            for number, block in enumerate(blocks):
                source = self.gpu.use_table(block)
                if number == 0:
                    self._launch("copy_numbers", layout.linear_width, source=source["bias"], target=target["bias"])
                for name, width, first, last, most in (
                    ("linear", layout.linear_width, starts[number], starts[number + 1], len(features)),
                    ("factors", layout.factor_width, factor_starts[number], factor_starts[number + 1], owning),
                ):
                    begin, end = (min(int(at), most) for at in np.searchsorted(features, [first, last]))
                    self._launch(
                        "gather_rows", (end - begin) * width, n=end - begin, width=width, start=first,
                        rows=rows.address + 4 * begin, source=source[name],
                        target=target[name].address + 4 * width * begin,
                    )  # fmt: skip
            local.arrays.changed()
        return local

    def copy(self, table: ParameterTable) -> ParameterTable:
        """See `averaging.Averaging`."""
        with self.gpu.taken():
            return self._copy(table)

    def _copy(self, table: ParameterTable) -> GpuTable:
        result = GpuTable.empty(self.gpu, table.layout, table.n_features, table.n_factored)
        layout, source, target = table.layout, self.gpu.use_table(table), self.gpu.use_table(result)
        self._launch("copy_numbers", layout.linear_width, source=source["bias"], target=target["bias"])
        for name, n_numbers in (
            ("linear", table.n_features * layout.linear_width),
            ("factors", table.n_factored * layout.factor_width),
        ):
            self._launch("copy_numbers", n_numbers, source=source[name], target=target[name])
        result.arrays.changed()
        return result

    def put(self, local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
        """See `params.put`."""
        layout = table.layout
        if not isinstance(table, GpuTable) or table.gpu is not self.gpu:
            raise ValueError(
                f"{table!r} is not on this GPU, and cannot be changed here; pass what `copy` or `pull` gave"
            )
        with self.gpu.taken():
            source, target = self.gpu.use_table(local), self.gpu.use(table.arrays)
            places = self.gpu.residents.array(rows)
            self._launch("copy_numbers", layout.linear_width, source=source["bias"], target=target["bias"])
            for name, n_rows, width in (
                ("linear", local.n_features, layout.linear_width),
                ("factors", local.n_factored, layout.factor_width),
            ):
                self._launch(
                    "scatter_rows", n_rows * width, n=n_rows, width=width, rows=places,
                    source=source[name], target=target[name],
                )  # fmt: skip
            table.arrays.changed()

    # ------------------------------------------------------------------------------------------- summands ----

    def contribute(
        self, rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable, halved: bool
    ) -> Summands:
        """See `averaging.contribute`."""
        rule.check_optimizer(before.layout.optimizer)
        layout, columns = before.layout, columns_of(rule, before.layout)
        n_features, n_factored, gpu = after.n_features, after.n_factored, self.gpu
        with gpu.taken():
            olds, news = gpu.use_table(before), gpu.use_table(after)
            made = GpuArrays.empty(
                gpu, {"linear": (n_features, columns.n_linear), "factors": (n_factored, columns.n_factor)}
            )
            out = gpu.use(made)
            numbers: dict[str, Any] = {
                "before_linear": olds["linear"], "after_linear": news["linear"], "linear": out["linear"],
                "before_factors": olds["factors"], "after_factors": news["factors"], "factors": out["factors"],
                "linear_width": layout.linear_width, "factor_width": layout.factor_width,
                "merge": _merge(rule, layout, 1),
            }  # fmt: skip
            if columns.occurrences >= 0:
                numbers["occurrences"] = gpu.send(touched.occurrences().astype(np.float32))
            self._launch("contribute_linear", n_features, **numbers)
            self._launch("contribute_factors", n_factored * layout.lanes, n=n_factored, **numbers)
            if halved:
                self._launch("round_summands", n_features * columns.n_linear, target=out["linear"])
                self._launch("round_summands", n_factored * columns.n_factor, target=out["factors"])
            made.changed()
            old, new = (gpu.table(table).arrays.now("bias") for table in (before, after))
            rows = touched.total_weight
        return GpuSummands(touched.features, made, rows * bias_growth(columns, old, new), rows, halved)

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
        n_factored = int(np.searchsorted(features, max(part.end_of_owners for part in parts)))
        linear_width, factor_width = parts[0].widths
        made = GpuArrays.empty(gpu, {"linear": (len(features), linear_width), "factors": (n_factored, factor_width)})
        out, rows = gpu.use(made), gpu.residents.array(features)
        shared_bytes = 4 * THREADS * (len(parts).bit_length() + 1)
        for start, stop in chunks:
            first, last = (int(at) for at in np.searchsorted(features, [start, stop]))
            records = self._note(parts, start, stop)
            for kernel, name, width, end in (
                ("sum_linear", "linear", linear_width, last),
                ("sum_factors", "factors", factor_width, min(last, n_factored)),
            ):
                self._launch(
                    kernel, (end - first) * width, shared_bytes, n=end - first, width=width, start=start,
                    rows=rows.address + 4 * first, target=out[name].address + 4 * first * width,
                    parts=records, n_parts=len(parts),
                )  # fmt: skip
        made.changed()
        bias = fold([each.bias for each in contributions], np.add)
        return GpuSummands(features, made, bias, fold([each.rows for each in contributions], operator.add))

    def _part(self, summands: Summands) -> _Part:
        """Where the device finds summands."""
        if isinstance(summands, GpuSummands) and summands.arrays.gpu is not self.gpu:
            summands = summands.on_host()
        if isinstance(summands, GpuSummands):
            arrays, (first, last) = self.gpu.use(summands.arrays), summands.bounds()
            features, linear, factors = summands.features, arrays["linear"], arrays["factors"]
            return _Part(features, self.gpu.residents.array(features), first, last, summands.n_factored,
                         summands.widths, linear, factors)  # fmt: skip
        whole = summands.whole()
        features, widths = whole.features, (whole.linear.shape[1], whole.factors.shape[1])
        listed, linear, factors = (self.gpu.send(array) for array in (features, whole.linear, whole.factors))
        return _Part(features, listed, 0, len(features), len(whole.factors), widths, linear, factors)

    def _chunks(self, parts: Sequence[_Part]) -> list[tuple[int, int]]:
        """Rows of the parameter table that are summed at a time, so that notes of places stay small."""
        start = min((int(part.meant[0]) for part in parts if len(part.meant)), default=0)
        stop = max((int(part.meant[-1]) + 1 for part in parts if len(part.meant)), default=0)
        size = max(CHUNK_BYTES // (4 * len(parts)), 1)
        return [(at, min(at + size, stop)) for at in range(start, stop, size)]

    def _note(self, parts: Sequence[_Part], start: int, stop: int) -> Buffer:
        """`struct Part` of each part, with notes of where its summands of the rows [start, stop) stand."""
        records = np.zeros(len(parts), PART)
        for record, part, adds in zip(records, parts, _adds(len(parts)), strict=True):
            if part.places is None or part.n_places < stop - start:
                part.places, part.n_places = self.gpu.allocate(4 * (stop - start)), stop - start
            self._launch("forget_places", stop - start, places=part.places)
            self._launch(
                "note_places", part.last - part.first, n_places=stop - start, start=start, shift=part.first,
                rows=part.listed.address + 4 * part.first, places=part.places,
            )  # fmt: skip
            record["places"], record["n_adds"] = part.places.address, adds
            record["linear"], record["factors"] = part.linear.address, part.factors.address
        return self.gpu.send(records)

    def _union(self, parts: Sequence[_Part]) -> NDArray[np.uint32]:
        """The features that any part has, ascending; remembered as long as the parts' own lists are there."""
        parts = [part for part in parts if len(part.meant)]
        key = tuple(number for part in parts for number in (id(part.features), part.first, part.last))
        if key in self._unions:
            return self._unions[key]
        found = [np.zeros(0, np.uint32)]
        for start, stop in self._chunks(parts):
            records, room = self._note(parts, start, stop), self.gpu.allocate(stop - start)
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
        layout, gpu, rates = block.layout, self.gpu, rates_of(step)
        with gpu.taken():
            total = self._part(contribution.select(start, start + block.n_features))
            bias = np.array(gpu.table(block).arrays.now("bias"))
            merged, drift = self._copy(block), self._next_momentum(rule, block, momentum)
            drift_bias = np.array(drift.arrays.now("bias")) if drift else np.zeros(1, np.float32)
            new, n_rows, owners = gpu.use(merged.arrays), total.last - total.first, total.n_owners
            numbers: dict[str, Any] = {
                "start": start, "rows": total.listed.address + 4 * total.first,
                "linear": new["linear"], "factors": new["factors"],
                "linear_sums": total.linear.address + 4 * total.first * total.widths[0],
                "factor_sums": total.factors.address + 4 * total.first * total.widths[1],
                "linear_width": layout.linear_width, "factor_width": layout.factor_width, "drift_lanes": layout.lanes,
                "merge": _merge(rule, layout, n_replicas),
                "ftrl": (
                    rates.learning_rate, rates.l1_linear, rates.l2_linear, rates.ftrl_beta, layout.optimizer == "ftrl",
                ),
            }  # fmt: skip
            if drift:
                speeds = gpu.use(drift.arrays)
                numbers |= {"linear_drift": speeds["linear"], "factor_drift": speeds["factors"]}
            # Factors first: a row's accumulator stands in the linear record, and its old value is needed.
            self._launch("finish_factors", owners * layout.lanes, n=owners, **numbers)
            self._launch("finish_linear", n_rows, **numbers)
            finish_bias(rule, layout, contribution, step, (bias, drift_bias))
            for table, record in ((merged, bias), (drift, drift_bias)):
                if table is not None:
                    table.arrays.changed()
                    table.arrays.replace("bias", record)
        return merged, drift

    def _next_momentum(
        self, rule: MergeRule, block: ParameterTable, momentum: ParameterTable | None
    ) -> GpuTable | None:
        """The table that takes the new momentum, holding the old one; None where the rule has none."""
        if not rule.outer_momentum:
            return None
        if momentum is not None:
            return self._copy(momentum)
        zeros = GpuTable.empty(self.gpu, block.layout.stateless, block.n_features, block.n_factored)
        for name, buffer in self.gpu.use(zeros.arrays).items():
            self._launch("clear_numbers", math.prod(zeros.arrays.shapes[name]), target=buffer)
        zeros.arrays.changed()
        return zeros

    def _launch(self, kernel: str, n_items: int, shared_bytes: int = 0, **fields: Any) -> None:
        """Queue a kernel over so many items; buffers stand for their addresses, `n` is n_items unless it is given."""
        if n_items <= 0:
            return
        record = np.zeros(1, LAUNCH)
        for name, value in {"n": n_items, **fields}.items():
            record[name] = getattr(value, "address", value)
        room = self.gpu.send(record)
        blocks = min(-(-n_items // THREADS), MOST_BLOCKS)
        self._program.launch(kernel, (blocks, THREADS), shared_bytes, room)


@dataclass
class _Part:
    """Where the device finds summands: those of features[first:last] in rows of `linear`, the first of them, before
    `n_factored`, also in rows of `factors`. listed: the features there; places: notes of where the summands of a row
    of the table stand, made when they are summed.
    """

    features: NDArray[np.uint32]
    listed: Buffer
    first: int
    last: int
    n_factored: int
    widths: tuple[int, int]
    linear: Buffer
    factors: Buffer
    places: Buffer | None = None
    n_places: int = 0

    @property
    def meant(self) -> NDArray[np.uint32]:
        """The features of the part."""
        return self.features[self.first : self.last]

    @property
    def n_owners(self) -> int:
        """How many of them own factors."""
        return max(min(self.last, self.n_factored) - self.first, 0)

    @property
    def end_of_owners(self) -> int:
        """Row of the parameter table after the last of these."""
        return int(self.meant[self.n_owners - 1]) + 1 if self.n_owners else 0


def _batches(items: Iterable[Summands], size: int) -> Iterator[list[Summands]]:
    """So many at a time; the last may be fewer."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _adds(n_parts: int) -> list[int]:
    """How many sums of the tree are complete after each part."""
    if n_parts == 1:
        return [0]
    middle = 1 << (n_parts - 1).bit_length() - 1
    left, right = _adds(middle), _adds(n_parts - middle)
    return [*left, *right[:-1], right[-1] + 1]


def _merge(rule: MergeRule, layout: Layout, n_replicas: int) -> tuple[Any, ...]:
    """`struct Merge` of the .cu."""
    numbers = finish_of(rule, layout, n_replicas)
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
