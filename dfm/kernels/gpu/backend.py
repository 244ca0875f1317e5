"""The GPU backend: the kernels of `cupy_gpu.cu`, compiled by CuPy, behind the contract that the CPU backend has.

A round walks the rows that stay on the device (or stream through). A `GpuTable` stays there too; another table is sent
first and brought back afterwards. Rounds of one process take turns on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import Following, Kernels, KernelSpec, RoundTally, RowsLike, Step, check_layout, check_table
from dfm.kernels.families.registry import FAMILIES, family_of
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu import plan as gpu_plan
from dfm.kernels.gpu.composition import RATES, RATES_TEXT, compose, optimizer_on_gpu
from dfm.kernels.gpu.memory import TRAIN, Buffer, Program, Resident, first_value
from dfm.kernels.gpu.plan import Facts, Grid, Piece
from dfm.kernels.gpu.tables import Gpu, GpuTable
from dfm.kernels.losses import LOSSES, CompiledLoss, resolve_loss
from dfm.kernels.optimizers import resolve_optimizer
from dfm.kernels.rates import check_penalties
from dfm.kernels.row_order import BLOCK_ROWS
from dfm.kernels.tables import Layout, ParameterTable

SOURCE = Path(__file__).with_suffix(".cu")
FACTOR_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_COPIES = 4
"""Bytes of a table that averaging may want beside it; what it did want is known after a round."""
_KNOWN = ("loss", "loss_parameter", "optimizer", "n_factors", "factor_dtype", "family")

_ROWS = [(name, np.uint64) for name in ("indptr", "indices", "values", "labels", "weights")]
_TABLE = [(name, np.uint64) for name in ("bias", "linear", "factors", "halves")]
LAUNCH = np.dtype(
    [
        ("rows", [*_ROWS, ("first_entry", np.int64), ("first_value", np.int64), ("n_implicit", np.int64)]),
        (
            "table",
            [
                *_TABLE,
                *((name, np.int64) for name in ("linear_width", "factor_width", "n_features", "n_factored")),
            ],
        ),
        ("rates", [(name, np.float32) for name in RATES]),
        ("n_hot", np.int32),
        ("rows_per_flush", np.int32),
        ("blocks", np.uint64),
        ("n_blocks", np.int64),
        ("tallies", np.uint64),
        ("stop", np.uint64),
        ("scores", np.uint64),
        ("seed", np.uint64),
    ],
    align=True,
)
"""Arguments of a launch: `struct Launch` of the .cu, field by field."""


def source_of(spec: KernelSpec) -> str:
    """The program of a spec: its compile-time numbers, then the .cu with the texts of loss and optimizer. SettingsError
    for what the GPU does not do.
    """
    loss_parameter, loss_text = _loss_on_gpu(spec)
    resolve_optimizer(spec.optimizer)
    optimizer, family = optimizer_on_gpu(spec.optimizer), _family_on_gpu(spec.family)
    if spec.factor_dtype not in FACTOR_BITS:
        raise SettingsError(f"factor_dtype = {spec.factor_dtype!r}; choose one of {', '.join(FACTOR_BITS)}")
    for other in dataclasses.fields(spec):
        value = getattr(spec, other.name)
        if other.name not in _KNOWN and value != other.default:
            raise SettingsError(
                f'the GPU has no code for {other.name} = {value!r}; leave it out, or choose training.backend = "numba"'
            )
    layout = spec.layout
    numbers = {
        "N_FACTORS": spec.n_factors,
        "LANES": layout.lanes,
        "PRIMARY": optimizer.primary,
        "OWN_STATE": optimizer.factor_state,
        "ROW_STATE": int(optimizer.has_row_state),
        "DERIVED": int(optimizer.derives_weights),
        "LOSS_PARAMETER": loss_parameter,
        "FACTOR_BITS": FACTOR_BITS[spec.factor_dtype] if layout.lanes else 32,
        "FACTOR_BF16": int(spec.factor_dtype == "bfloat16"),
    }
    texts = {"rates": RATES_TEXT, "loss": loss_text, "optimizer": str(optimizer.cuda), "family": family}
    return compose(SOURCE, numbers, texts)


def _family_on_gpu(name: str) -> str:
    """The family's text. SettingsError where it has none."""
    text = family_of(name).cuda
    if text is None:
        having = ", ".join(known for known in FAMILIES if family_of(known).cuda is not None)
        raise SettingsError(
            f'the GPU has no code for family = "{name}", only for {having}; choose one of these, or '
            'training.backend = "numba"'
        )
    return text


def _loss_on_gpu(spec: KernelSpec) -> tuple[str, str]:
    """The parameter of the loss, 0.0 where it has none, and its text. SettingsError where the GPU has none."""
    loss = resolve_loss(spec.loss, spec.loss_parameter)
    text = loss.record.cuda if isinstance(loss, CompiledLoss) else None
    if text is None:
        having = ", ".join(name for name, record in LOSSES.items() if record.cuda is not None)
        raise SettingsError(
            f"the GPU has no code for the loss {loss.name!r}, only for {having}; choose one of these, "
            'or training.backend = "numba"'
        )
    return repr(float(getattr(loss, "parameter", None) or 0.0)), text


@dataclass
class _Walk:
    """One call's work on the device: the launch record is filled in once, and changed from launch to launch."""

    gpu: Gpu
    program: Program
    rows: RowsLike
    record: NDArray[Any]
    room: Buffer
    """The record on the device; a launch reads it before the next one can overwrite it, as TRAIN keeps its order."""

    @classmethod
    def begin(
        cls, gpu: Gpu, program: Program, rows: RowsLike, table: ParameterTable, buffers: Mapping[str, Buffer]
    ) -> _Walk:
        record = np.zeros(1, LAUNCH)
        shapes = table.layout.linear_width, table.layout.factor_width, table.n_features, table.n_factored
        addresses = (buffers[name].address if name in buffers else 0 for name, _ in _TABLE)
        record["table"] = (*addresses, *shapes)
        return cls(gpu, program, rows, record, gpu.allocate(LAUNCH.itemsize))

    def use(self, piece: Piece) -> Resident:
        """Point the record at a piece of rows; TRAIN waits until it has arrived."""
        resident, rows = self.gpu.residents.get(self.rows, piece), self.rows
        addresses = {name: resident.address(name) for name, _ in _ROWS}
        if not len(rows.weights):
            addresses["weights"] = 0
        implicit = min(max(rows.n_implicit - piece.first, 0), piece.last - piece.first)
        starts = int(rows.indptr[piece.first]), first_value(rows, piece), implicit
        self.record["rows"] = (*addresses.values(), *starts)
        self.gpu.device.wait(TRAIN, resident.arrived)
        return resident

    def launch(self, kernel: str, grid: Grid) -> None:
        """Queue a kernel with the record as it is now."""
        self.gpu.device.send(self.record, self.room, 0, TRAIN)
        self.program.launch(kernel, (grid.blocks, grid.threads), grid.shared_bytes, self.room)

    def each(self, pieces: list[Piece]) -> Iterator[tuple[int, Piece]]:
        """The pieces with their number; while one is worked on, the next one is copied."""
        for number, piece in enumerate(pieces):
            resident = self.use(piece)
            yield number, piece
            resident.used = self.gpu.device.mark(TRAIN)
            if number + 1 < len(pieces):
                self.gpu.residents.get(self.rows, pieces[number + 1])


def _door(gpu: Gpu, spec: KernelSpec, rows: RowsLike, table: ParameterTable, with_state: bool) -> Facts:
    """Facts of the rows; raises where kernels could read or write outside of the arrays."""
    if isinstance(table, GpuTable):  # whose arrays are not looked at
        check_layout(table, spec, with_state)
    else:
        check_table(table, spec, with_state)
    facts = gpu.residents.facts(rows)
    if facts.largest >= table.n_features:
        raise IndexError(f"index {facts.largest} is beyond the table's {table.n_features} features")
    return facts


def _fit(gpu: Gpu, spec: KernelSpec, rows: RowsLike, table: GpuTable, pieces: list[Piece]) -> None:
    """Set the budget of the rows; lists, and then older parameters, are evicted where the table needs their place."""
    largest = max((gpu_plan.piece_bytes(rows, p.first, p.last) + 8192 for p in pieces), default=0)
    needed = gpu_plan.table_bytes(table.layout, table.n_features, table.n_factored, spec.factor_dtype)
    gpu.hold(table.arrays)
    if table.arrays.is_on_device:
        needed -= table.nbytes
    residents = gpu.residents
    while (free := gpu.device.free_bytes() + residents.n_bytes) < needed + 2 * largest:
        if not (residents.evict_array() or gpu.spill_one()):
            break
    # Averaging wants a copy from before, what was learnt, and the merged table, of each replica and of all.
    reserve = gpu.reserve(_COPIES * table.nbytes)
    residents.limit(gpu_plan.row_budget(gpu.row_limit, free, needed, reserve, largest, gpu.device.name))


@dataclass
class _Round:
    """One walk over all rows of a partition."""

    walk: _Walk
    spec: KernelSpec
    step: Step
    facts: Facts
    bias: Buffer
    layout: Layout
    is_settled: bool = False
    """Whether as many rows may be in flight as the device can take; until then each launch asks the bias again."""
    walked: int = 0
    """Row blocks."""
    first_bias: list[float] = field(default_factory=list)
    known_growth: float = 0.0
    """Growth of the bias' accumulator per row, in an earlier walk of these rows."""

    def grid(self, n_blocks: int) -> Grid:
        """For the next launch, of at most n_blocks row blocks."""
        if self.step.deterministic:
            self.is_settled = True
            return gpu_plan.one_by_one(self.layout)
        widest = gpu_plan.side_by_side(self.layout, self.facts, n_blocks, n_blocks, float("inf"))
        most = self.walk.program.most_blocks("train_rows", widest.threads, widest.shared_bytes)
        calm = float("inf") if self.is_settled else self._calm_rows()
        self.is_settled = calm >= most * widest.warps * widest.rows_per_flush
        return gpu_plan.side_by_side(self.layout, self.facts, n_blocks, most, calm)

    def _calm_rows(self) -> float:
        bias = self._bias_now()
        self.first_bias = self.first_bias or bias
        seen = gpu_plan.rows_seen(self.spec, self.walked * BLOCK_ROWS, self.first_bias, bias, self.known_growth)
        return gpu_plan.calm_rows(self.spec, self.step, self.facts, bias, seen)

    def _bias_now(self) -> list[float]:
        room = np.empty(self.layout.linear_width, np.float32)
        self.walk.gpu.device.fetch(self.bias, room)
        numbers: list[float] = room.tolist()
        return numbers

    def growth(self, n_rows: int) -> float:
        """Growth of the bias' accumulator by each of the n_rows walked; 0.0 where nobody read the bias before them."""
        if not self.first_bias:
            return 0.0
        return gpu_plan.growth_per_row(self.spec, n_rows, self.first_bias, self._bias_now())

    def train(self, piece: Piece, blocks: int, tallies: int) -> None:
        """Walk a piece, whose blocks and tallies begin at these addresses."""
        record, at = self.walk.record, 0
        while at < len(piece.blocks):
            rest = len(piece.blocks) - at
            grid = self.grid(rest)
            count = rest if self.is_settled else min(rest, max(2 * grid.blocks, self.walked // 2))
            record["n_hot"], record["rows_per_flush"] = grid.n_hot, grid.rows_per_flush
            record["blocks"], record["n_blocks"] = blocks + 16 * at, count
            record["tallies"] = tallies + 24 * at
            self.walk.launch("train_rows", grid)
            at += count
            self.walked += count


def _train(
    program: Program,
    gpu: Gpu,
    spec: KernelSpec,
    rows: RowsLike,
    table: ParameterTable,
    step: Step,
    following: Following | None = None,
) -> RoundTally:
    """One walk over all rows, in place on `table`."""
    check_penalties(step, spec.optimizer)
    with gpu.taken():
        device, facts = gpu.device, _door(gpu, spec, rows, table, with_state=True)
        ours = _ours(gpu, table)
        pieces = gpu_plan.pieces(len(rows.labels), rows.n_implicit, step.seed)
        gpu.row_limit = step.device_bytes
        _fit(gpu, spec, rows, ours, pieces)
        with_halves = spec.factor_dtype != "float32" and table.layout.lanes > 0
        buffers = gpu.use(ours.arrays)
        if with_halves:
            buffers = {**buffers, "halves": gpu.allocate(2 * table.n_factored * table.layout.lanes)}
        walk = _Walk.begin(gpu, program, rows, table, buffers)
        blocks = np.concatenate([np.zeros((0, 2), np.int64), *(piece.blocks for piece in pieces)])
        tallies = np.zeros((len(blocks), 3))
        room, results, stop = (gpu.send(array) for array in (blocks, tallies, np.zeros(1, np.int32)))
        walk.record["rates"] = tuple(getattr(step, name) for name in RATES)
        walk.record["seed"] = step.seed
        walk.record["stop"] = stop.address
        every_factor = gpu_plan.flat(table.n_factored * table.layout.lanes // gpu_plan.WARP, 128)
        if with_halves:
            walk.launch("narrow_factors", every_factor)
        known = gpu.residents.growth(rows, spec)
        this_round = _Round(walk, spec, step, facts, buffers["bias"], table.layout, known_growth=known)
        starts = [0, *itertools.accumulate(len(piece.blocks) for piece in pieces)]
        for number, piece in walk.each(pieces):
            start = starts[number]
            this_round.train(piece, room.address + 16 * start, results.address + 24 * start)
        if with_halves:
            walk.launch("widen_factors", every_factor)
        if table.layout.rule.derives_weights:
            walk.launch("refresh_weights", gpu_plan.flat(table.n_features // gpu_plan.WARP, 128))
        if following:
            _copy_ahead(gpu, following)
        device.fetch(results, tallies)
        if growth := this_round.growth(int(tallies[:, 0].sum())):
            gpu.residents.grew(rows, spec, growth)
        ours.arrays.changed()
        if ours is not table:
            for block in table.layout.blocks:
                device.fetch(buffers[block.name], table[block.name])
    n_rows, weight, loss = tallies.sum(axis=0)
    return RoundTally(int(n_rows), float(weight), float(loss), bool(np.isfinite(loss)))


def _copy_ahead(gpu: Gpu, following: Following) -> None:
    """Let the first piece of the next walk come while this one is under way; errors are that walk's to raise."""
    rows = following.rows
    with contextlib.suppress(ClusterError, TypeError, ValueError):
        gpu.residents.facts(rows)
        for piece in gpu_plan.pieces(len(rows.labels), rows.n_implicit, following.seed)[:1]:
            gpu.residents.get_if_it_fits(rows, piece)


def _ours(gpu: Gpu, table: ParameterTable) -> GpuTable:
    """The table on the device, for the time of a call unless it lives there: another one may change between calls."""
    return table if isinstance(table, GpuTable) and table.gpu is gpu else GpuTable.of_host(gpu, table)


def _score(program: Program, gpu: Gpu, spec: KernelSpec, rows: RowsLike, table: ParameterTable) -> NDArray[np.float32]:
    scores = np.empty(len(rows.labels), np.float32)
    with gpu.taken():
        _door(gpu, spec, rows, table, with_state=False)
        pieces = sorted(gpu_plan.pieces(len(rows.labels), rows.n_implicit, 0), key=lambda piece: piece.first)
        ours = _ours(gpu, table)
        _fit(gpu, spec, rows, ours, pieces)
        walk = _Walk.begin(gpu, program, rows, table, gpu.use(ours.arrays))
        room = gpu.allocate(scores.nbytes)
        for _, piece in walk.each(pieces):
            n_rows = piece.last - piece.first
            walk.record["scores"], walk.record["n_blocks"] = room.address + 4 * piece.first, n_rows
            walk.launch("score_rows", gpu_plan.flat(n_rows, 128))
        gpu.device.fetch(room, scores)
    return scores


def build(spec: KernelSpec, gpu: Gpu) -> Kernels:
    """Kernels of a spec on a device."""
    source = source_of(spec)
    with gpu.taken():
        program = gpu.device.compile(source)
    return Kernels(spec, partial(_train, program, gpu, spec), partial(_score, program, gpu, spec))


_cache: dict[tuple[KernelSpec, int], Kernels] = {}
_gpus: dict[int, Gpu] = {}
_lock = threading.RLock()


def gpu_of_process() -> Gpu:
    """The GPU that this process trains on. ClusterError where there is none."""
    with _lock:
        number = cupy_device.chosen()
        if number not in _gpus:
            _gpus[number] = Gpu(cupy_device.CupyDevice(number))
        return _gpus[number]


def compile_kernels(spec: KernelSpec) -> Kernels:
    """Kernels of a spec on this process's GPU, compiled at the first call in this process (a second or so)."""
    with _lock:
        number = cupy_device.chosen()
        key = spec, number
        if key not in _cache:
            source_of(spec)  # what the GPU does not do is said before it is said that there is none
            _cache[key] = build(spec, gpu_of_process())
        return _cache[key]
