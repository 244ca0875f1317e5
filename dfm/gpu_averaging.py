"""Averaging on a GPU: tables and summands stay on the device, and are merged there with the CPU's arithmetic.

`OnGpu` does what `averaging.OnProcessors` does. A round of one GPU moves no parameters at all; summands of another
worker's replicas come as a `Contribution` through the host, and ours leave as one.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging import Columns, MergeRule, bias_growth, columns_of, finish_bias, finish_of, shares_of
from dfm.contributions import Contribution, fold
from dfm.kernels import cupy_gpu
from dfm.kernels.contract import Step
from dfm.kernels.gpu_memory import TRAIN, Buffer, Program
from dfm.kernels.gpu_tables import Gpu, GpuTable
from dfm.kernels.optimizers import rates_of
from dfm.params import Layout, ParameterTable, allocate
from dfm.partition import SparsePartition
from dfm.slices import Slices, Touched

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
"""Of a block."""
MOST_BLOCKS = 4096
CHUNK_BYTES = 1 << 30
"""Of the device's memory that sums, and where their parts stand, may take while a block is merged."""

Summands = Any
"""`Sent`, `Summed`, or a `Contribution` that came from another process."""

_COLUMNS = [(name, np.int32) for name in Columns._fields]
_DIVISORS = [(name, np.float32) for name in ("fixed", "history", "growth")] + [("counts", np.int32)]
PART = np.dtype(
    [(name, np.uint64) for name in ("places", "touched", "linear", "factors")]
    + [(name, np.int64) for name in ("first", "last", "shift", "n_adds")]
)
"""`struct Part` of the .cu."""
LAUNCH = np.dtype(
    [
        *((name, np.int64) for name in ("n", "width", "start")),
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
        ("weights", [*((name, np.float32) for name in ("learning_rate", "l1", "l2", "beta")), ("is_ftrl", np.int32)]),
    ],
    align=True,
)
"""What a kernel is told: `struct Launch` of the .cu, field by field."""


class _Travels:
    """Summands on a device that leave it as a `Contribution`."""

    def on_host(self) -> Contribution:
        """The same summands in this process's memory."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., Contribution], tuple[Any, ...]]:
        host = self.on_host()
        return Contribution, (host.features, host.linear, host.factors, host.bias, host.rows)


@dataclass(frozen=True, eq=False)
class Sent(_Travels):
    """One replica's summands: a row of `linear` for each of the features uint32[m], and one of `factors` for the first
    `n_factored`, of `widths` float32. The features in [start, stop) are meant. `ready`: when the summands are made."""

    gpu: Gpu = field(repr=False)
    features: NDArray[np.uint32]
    n_factored: int
    widths: tuple[int, int]
    linear: Buffer
    factors: Buffer
    bias: NDArray[np.float64]
    rows: float
    is_halved: bool
    ready: Any
    start: int = 0
    stop: int = 1 << 32

    @property
    def nbytes(self) -> int:
        """Bytes of what would travel."""
        first, last = self.bounds()
        n_factored = max(min(last, self.n_factored) - first, 0)
        numbers = (last - first) * self.widths[0] + n_factored * self.widths[1]
        return 4 * (last - first) + numbers * (2 if self.is_halved else 4) + self.bias.nbytes

    def select(self, start: int, stop: int) -> Sent:
        """The part that falls into rows [start, stop) of the parameter table."""
        return dataclasses.replace(self, start=max(start, self.start), stop=min(stop, self.stop))

    def on_host(self) -> Contribution:
        """See `_Travels`."""
        first, last = self.bounds()
        owners = max(min(last, self.n_factored) - first, 0)
        linear = np.empty((last - first, self.widths[0]), np.float32)
        factors = np.empty((owners, self.widths[1]), np.float32)
        self.gpu.fetch(
            self.ready,
            (self.linear, linear, 4 * first * self.widths[0]),
            (self.factors, factors, 4 * first * self.widths[1]),
        )
        whole = Contribution(self.features[first:last], linear, factors, self.bias, self.rows)
        return whole.halved() if self.is_halved else whole

    def bounds(self) -> tuple[int, int]:
        """Which of the features are meant."""
        first, last = np.searchsorted(self.features, [self.start, self.stop])
        return int(first), int(last)


@dataclass(frozen=True, eq=False)
class Summed(_Travels):
    """A sum of summands: a row of `linear` for each row of the parameter table from `first` on, and one of `factors`
    for the first `n_factored` of these. Rows in [start, stop) are meant, where `touched` says so."""

    gpu: Gpu = field(repr=False)
    first: int
    n_factored: int
    widths: tuple[int, int]
    linear: Buffer
    factors: Buffer
    touched: Buffer
    bias: NDArray[np.float64]
    rows: float
    ready: Any
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of what would travel if all rows were touched."""
        n_factored = max(min(self.stop - self.first, self.n_factored) - (self.start - self.first), 0)
        n_rows = max(self.stop - self.start, 0)
        return 4 * (n_rows * (1 + self.widths[0]) + n_factored * self.widths[1]) + self.bias.nbytes

    def select(self, start: int, stop: int) -> Summed:
        """The part that falls into rows [start, stop) of the parameter table."""
        start = min(max(start, self.start), self.stop)
        return dataclasses.replace(self, start=start, stop=max(start, min(stop, self.stop)))

    def on_host(self) -> Contribution:
        """See `_Travels`."""
        at, n_rows = self.start - self.first, self.stop - self.start
        owners = max(min(at + n_rows, self.n_factored) - at, 0)
        touched = np.empty(n_rows, np.uint8)
        linear = np.empty((n_rows, self.widths[0]), np.float32)
        factors = np.empty((owners, self.widths[1]), np.float32)
        self.gpu.fetch(
            self.ready,
            (self.touched, touched, at),
            (self.linear, linear, 4 * at * self.widths[0]),
            (self.factors, factors, 4 * at * self.widths[1]),
        )
        chosen = np.flatnonzero(touched)
        features = (chosen + self.start).astype(np.uint32)
        owned = chosen[: np.searchsorted(chosen, owners)]
        return Contribution(features, linear[chosen], factors[owned], self.bias, self.rows)


@dataclass
class OnGpu:
    """`averaging.Averaging` on a GPU."""

    gpu: Gpu
    _program: Program = field(init=False)
    _united: dict[tuple[int, ...], Slices] = field(init=False, default_factory=dict)
    """What `unite` found, by the slices' features: the same slices come in every later epoch."""

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
        starts = [0, *itertools.accumulate(block.n_features for block in blocks)]
        factor_starts = [0, *itertools.accumulate(block.n_factored for block in blocks)]
        if len(features) and int(features[-1]) >= starts[-1]:
            raise IndexError(f"feature {int(features[-1])} is beyond the table's {starts[-1]} rows")
        owning = int(np.searchsorted(features, factor_starts[-1])) if n_factored is None else n_factored
        if owning and int(features[owning - 1]) >= factor_starts[-1] and blocks[0].layout.n_factors:
            raise IndexError(
                f"feature {int(features[owning - 1])} is beyond the {factor_starts[-1]} rows that own factors"
            )
        layout = blocks[0].layout
        with self.gpu.taken():
            local = GpuTable.empty(self.gpu, layout, len(features), owning)
            target, rows = self.gpu.use(local), self.gpu.residents.array(features)
            for number, block in enumerate(blocks):
                source = self.gpu.use(block)
                if number == 0:
                    self._launch("copy_numbers", layout.linear_width, source=source.bias, target=target.bias)
                for name, width, first, last, most in (
                    ("linear", layout.linear_width, starts[number], starts[number + 1], len(features)),
                    ("factors", layout.factor_width, factor_starts[number], factor_starts[number + 1], owning),
                ):
                    begin, end = (min(int(at), most) for at in np.searchsorted(features, [first, last]))
                    self._launch(
                        "gather_rows", (end - begin) * width, n=end - begin, width=width, start=first,
                        rows=rows.address + 4 * begin, source=getattr(source, name),
                        target=getattr(target, name).address + 4 * width * begin,
                    )  # fmt: skip
            local.changed()
        return local

    def copy(self, table: ParameterTable) -> ParameterTable:
        """See `averaging.Averaging`."""
        with self.gpu.taken():
            return self._copy(table)

    def _copy(self, table: ParameterTable) -> GpuTable:
        result = GpuTable.empty(self.gpu, table.layout, table.n_features, table.n_factored)
        layout, source, target = table.layout, self.gpu.use(table), self.gpu.use(result)
        self._launch("copy_numbers", layout.linear_width, source=source.bias, target=target.bias)
        for name, n_numbers in (
            ("linear", table.n_features * layout.linear_width),
            ("factors", table.n_factored * layout.factor_width),
        ):
            self._launch("copy_numbers", n_numbers, source=getattr(source, name), target=getattr(target, name))
        result.changed()
        return result

    def put(self, local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
        """See `params.put`."""
        layout = table.layout
        with self.gpu.taken():
            source, target, places = self.gpu.use(local), self.gpu.use(table), self.gpu.residents.array(rows)
            self._launch("copy_numbers", layout.linear_width, source=source.bias, target=target.bias)
            for name, n_rows, width in (
                ("linear", local.n_features, layout.linear_width),
                ("factors", local.n_factored, layout.factor_width),
            ):
                self._launch(
                    "scatter_rows", n_rows * width, n=n_rows, width=width, rows=places,
                    source=getattr(source, name), target=getattr(target, name),
                )  # fmt: skip
            self.gpu.table(table).changed()

    # ------------------------------------------------------------------------------------------- summands ----

    def contribute(
        self, rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable, halved: bool
    ) -> Summands:
        """See `averaging.contribute`."""
        rule.check_optimizer(before.layout.optimizer)
        layout, columns = before.layout, columns_of(rule, before.layout)
        n_features, n_factored, gpu = after.n_features, after.n_factored, self.gpu
        with gpu.taken():
            olds, news = gpu.use(before), gpu.use(after)
            linear = gpu.allocate(4 * n_features * columns.n_linear)
            factors = gpu.allocate(4 * n_factored * columns.n_factor)
            numbers: dict[str, Any] = {
                "before_linear": olds.linear, "after_linear": news.linear, "linear": linear, "factors": factors,
                "before_factors": olds.factors, "after_factors": news.factors, "merge": _merge(rule, layout, 1),
                "linear_width": layout.linear_width, "factor_width": layout.factor_width,
            }  # fmt: skip
            if columns.occurrences >= 0:
                numbers["occurrences"] = gpu.send(touched.occurrences().astype(np.float32))
            self._launch("contribute_linear", n_features, **numbers)
            self._launch("contribute_factors", n_factored * layout.lanes, n=n_factored, **numbers)
            if halved:
                self._launch("round_summands", n_features * columns.n_linear, target=linear)
                self._launch("round_summands", n_factored * columns.n_factor, target=factors)
            old, new = gpu.table(before).bias_now(), gpu.table(after).bias_now()
            rows = touched.total_weight
            bias = rows * bias_growth(columns, old, new)
            ready = gpu.device.mark(TRAIN)
        widths = columns.n_linear, columns.n_factor
        return Sent(gpu, touched.features, n_factored, widths, linear, factors, bias, rows, halved, ready)

    def combine_all(self, contributions: Sequence[Summands]) -> Summands:
        """See `contributions.combine_all`."""
        if len(contributions) == 1:
            return contributions[0]
        with self.gpu.taken():
            return self._sum(contributions)

    def _sum(self, contributions: Sequence[Summands]) -> Summed:
        """The sum of one or more along their tree."""
        parts = [self._part(each) for each in contributions]
        first = min((part.first for part in parts if part.last > part.first), default=0)
        last = max((part.last for part in parts), default=first)
        n_rows = max(last - first, 0)
        n_factored = max(min(max(part.last_factored for part in parts), last) - first, 0)
        gpu, widths = self.gpu, parts[0].widths
        linear, factors = gpu.allocate(4 * n_rows * widths[0]), gpu.allocate(4 * n_factored * widths[1])
        touched = gpu.allocate(n_rows)
        depth = len(parts).bit_length() + 1
        chunk = max(CHUNK_BYTES // (4 * len(parts)), 1)
        places = [gpu.allocate(4 * min(chunk, n_rows)) if part.features else None for part in parts]
        records = np.zeros(len(parts), PART)
        for start in range(first, last, chunk):
            n = min(chunk, last - start)
            for record, part, room, adds in zip(records, parts, places, _adds(len(parts)), strict=True):
                if room is not None:
                    self._launch("forget_places", n, places=room)
                    self._launch(
                        "note_places", part.n_features, n=n, width=part.n_features, start=start, rows=part.features,
                        places=room,
                    )  # fmt: skip
                record["places"] = room.address if room is not None else 0
                record["touched"] = part.touched.address if part.touched else 0
                record["linear"], record["factors"] = part.linear.address, part.factors.address
                record["first"], record["last"] = part.first - start, part.last - start
                record["shift"], record["n_adds"] = start - part.origin, adds
            numbers: dict[str, Any] = {"parts": gpu.send(records), "n_parts": len(parts)}
            at, shared = start - first, 4 * THREADS * depth
            self._launch("note_touched", n, touched=touched.address + at, **numbers)
            self._launch(
                "sum_linear", n * widths[0], shared, n=n, width=widths[0], target=linear.address + 4 * at * widths[0],
                **numbers,
            )  # fmt: skip
            owners = min(n, n_factored - at)
            self._launch(
                "sum_factors", owners * widths[1], shared, n=owners, width=widths[1],
                target=factors.address + 4 * at * widths[1], **numbers,
            )  # fmt: skip
        bias = fold([each.bias for each in contributions], np.add)
        rows = fold([each.rows for each in contributions], operator.add)
        ready = gpu.device.mark(TRAIN)
        return Summed(
            gpu, first, n_factored, widths, linear, factors, touched, bias, rows, ready, first, first + n_rows
        )

    def _part(self, summands: Summands) -> _Part:
        """Where a sum finds its summands. Those of a part that was cut are noted for its rows only."""
        if isinstance(summands, Sent | Summed) and summands.gpu is not self.gpu:
            summands = summands.on_host()
        if isinstance(summands, Summed):
            factored = min(summands.first + summands.n_factored, summands.stop)
            return _Part(
                summands.widths, summands.start, summands.stop, factored, summands.linear, summands.factors,
                origin=summands.first, touched=summands.touched,
            )  # fmt: skip
        if isinstance(summands, Sent):
            first, last = summands.bounds()
            features, n_factored, widths = summands.features, summands.n_factored, summands.widths
            linear, factors = summands.linear, summands.factors
            list_of = self.gpu.residents.array(features)
        else:
            whole = summands.whole()
            features, first, last, n_factored = whole.features, 0, len(whole.features), len(whole.factors)
            widths = whole.linear.shape[1], whole.factors.shape[1]
            list_of, linear, factors = (self.gpu.send(each) for each in (features, whole.linear, whole.factors))
        owners = min(last, n_factored)
        return _Part(
            widths,
            int(features[first]) if last > first else 0,
            int(features[last - 1]) + 1 if last > first else 0,
            int(features[owners - 1]) + 1 if owners > first else 0,
            linear, factors, features=list_of, n_features=len(features),
        )  # fmt: skip

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
            total = contribution if isinstance(contribution, Summed) else self._sum([contribution])
            total = total.select(start, start + block.n_features)
            bias = np.array(gpu.table(block).bias_now())
            merged, drift = self._copy(block), self._next_momentum(rule, block, momentum)
            drift_bias = np.array(drift.bias_now()) if drift else np.zeros(1, np.float32)
            new, at, n_rows = gpu.use(merged), total.start - total.first, total.stop - total.start
            row = total.start - start
            numbers: dict[str, Any] = {
                "start": row, "touched": total.touched.address + at, "linear": new.linear, "factors": new.factors,
                "linear_sums": total.linear.address + 4 * at * total.widths[0],
                "factor_sums": total.factors.address + 4 * at * total.widths[1],
                "linear_width": layout.linear_width, "factor_width": layout.factor_width, "drift_lanes": layout.lanes,
                "merge": _merge(rule, layout, n_replicas),
                "weights": (
                    rates.learning_rate, rates.l1_linear, rates.l2_linear, rates.ftrl_beta, layout.optimizer == "ftrl",
                ),
            }  # fmt: skip
            if drift:
                speeds = gpu.use(drift)
                numbers |= {"linear_drift": speeds.linear, "factor_drift": speeds.factors}
            owners = max(min(n_rows, total.n_factored - at, block.n_factored - row), 0)
            # Factors first: a row's accumulator stands in the linear record, and its old value is needed.
            self._launch("finish_factors", owners * layout.lanes, n=owners, **numbers)
            self._launch("finish_linear", n_rows, **numbers)
            finish_bias(rule, layout, total, step, (bias, drift_bias))
            merged.set_bias(bias)
            if drift:
                drift.set_bias(drift_bias)
        return merged, drift

    def _next_momentum(
        self, rule: MergeRule, block: ParameterTable, momentum: ParameterTable | None
    ) -> GpuTable | None:
        """The table that takes the new momentum, holding the old one; None where the rule has none."""
        if not rule.outer_momentum:
            return None
        if momentum is None:
            momentum = allocate(block.layout.stateless, block.n_features, block.n_factored)
        return self._copy(momentum)

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


@dataclass(frozen=True)
class _Part:
    """Where a sum finds the summands of rows [first, last) of the table, of which those before `last_factored` may own
    factors: by the list `features`, or at row − origin where `touched` says so."""

    widths: tuple[int, int]
    first: int
    last: int
    last_factored: int
    linear: Buffer
    factors: Buffer
    features: Buffer | None = None
    n_features: int = 0
    origin: int = 0
    touched: Buffer | None = None


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
