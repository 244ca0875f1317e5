"""A click log like Criteo's with a planted factorization machine: the best possible log loss is known.

Every cell is a hash of (seed, row, column), and every planted weight a hash of (seed, column, token). So
nothing large is stored, and neither the number of processes nor the cut into shards changes a row. The token
of a category is its rank, that of a count its bucket as in the `log2-bucket` transform. A row's true logit is

    bias + sum_i w_i + 1/2 sum_f ((sum_i v_if)^2 - sum_i v_if^2)      (Rendle 2010, equation 1 and lemma 3.1)

over its 39 tokens. Weights of rare categories shrink to 0: what a million rows cannot teach is kept small.

The same seed gives the same rows on the same platform; another C library may round a power differently, and
move a few.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.pool import mapping
from dfm.errors import DataError, SettingsError
from dfm.events import to_json
from dfm.storage import files
from dfm.storage.ownership import SYNTHETIC, Ledger

TRUTH_FILE = "truth.json"
DONE = "_SUCCESS"
"""The marker that a day of the log is complete, as Spark leaves it and sensors wait for it."""
CLICK_RATE = 0.25
RANK = 6
ROW_GROUP_ROWS = 131_072

# Cardinality, share of missing cells, and the exponent and offset of the Zipf-Mandelbrot law,
# p(rank) ~ (rank + offset)^-exponent.
_CATEGORY_LAWS = [
    (1_460, 0.0, 1.7, 1.0),
    (583, 0.0, 1.2, 4.0),
    (5_000_000, 0.034, 1.1, 4.0),
    (2_200_000, 0.034, 1.15, 4.0),
    (305, 0.0, 2.0, 1.0),
    (24, 0.12, 1.3, 1.0),
    (12_500, 0.0, 1.1, 8.0),
    (633, 0.0, 2.0, 1.5),
    (3, 0.0, 2.5, 0.0),
    (93_000, 0.0, 1.3, 1.0),
    (5_700, 0.0, 1.1, 6.0),
    (4_000_000, 0.034, 1.12, 4.0),
    (3_200, 0.0, 1.1, 6.0),
    (27, 0.0, 1.6, 1.0),
    (15_000, 0.0, 1.15, 10.0),
    (3_000_000, 0.034, 1.15, 4.0),
    (10, 0.0, 1.2, 0.5),
    (5_600, 0.0, 1.2, 6.0),
    (2_200, 0.44, 1.6, 1.0),
    (4, 0.44, 0.3, 0.0),
    (3_500_000, 0.034, 1.12, 4.0),
    (18, 0.76, 2.0, 0.5),
    (15, 0.0, 1.4, 0.5),
    (286_000, 0.0, 1.15, 3.0),
    (105, 0.44, 1.6, 1.0),
    (142_000, 0.44, 1.2, 3.0),
]

# Share of missing cells, share of negative ones, median, tail (a count grows by odds^tail), largest count.
_COUNT_LAWS = [
    (0.453, 0.0, 1.6, 0.8, 5_775),
    (0.0, 0.11, 3.5, 1.8, 257_675),
    (0.211, 0.0, 6.0, 0.9, 65_535),
    (0.213, 0.0, 4.5, 0.65, 969),
    (0.026, 0.0, 2_800.0, 1.15, 23_159_456),
    (0.223, 0.0, 32.0, 1.0, 431_037),
    (0.042, 0.0, 3.3, 1.06, 56_311),
    (0.001, 0.0, 7.5, 0.7, 6_047),
    (0.042, 0.0, 38.0, 0.88, 29_019),
    (0.453, 0.0, 0.9, 0.4, 11),
    (0.042, 0.0, 1.3, 0.7, 231),
    (0.768, 0.0, 0.4, 0.7, 4_008),
    (0.213, 0.0, 4.2, 0.75, 7_393),
]

N_COUNTS = len(_COUNT_LAWS)
N_CATEGORIES = len(_CATEGORY_LAWS)
COUNT_COLUMNS = tuple(f"I{i + 1}" for i in range(N_COUNTS))
CATEGORY_COLUMNS = tuple(f"C{i + 1}" for i in range(N_CATEGORIES))
SCHEMA = pa.schema(
    [
        ("label", pa.int8()),
        *((name, pa.int64()) for name in COUNT_COLUMNS),
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in CATEGORY_COLUMNS),
    ]
)

# Standard deviations of a planted w and of one coordinate of a planted V. Tuned so that in one pass over
# 900,000 rows a plain FM (k = 8, AdaGrad) gets 0.85 of the way from the click rate's log loss to the truth's,
# and its linear part alone 0.5: a trainer that loses the interactions cannot hide it.
_LINEAR_STDEV = 0.2
_FACTOR_STDEV = 0.15
# A category that has this many of a million rows keeps half of its planted weights.
_HALF_WEIGHT_OCCURRENCES = 500

_CATEGORY_DTYPE = np.dtype(
    [
        ("missing", "f8"),
        ("low", "f8"),
        ("span", "f8"),
        ("power", "f8"),
        ("offset", "f8"),
        ("cardinality", "i8"),
    ]
)
_COUNT_DTYPE = np.dtype([("missing", "f8"), ("negative", "f8"), ("median", "f8"), ("tail", "f8"), ("limit", "f8")])
_EFFECT_DTYPE = np.dtype([("linear", "f8"), ("factor", "f8"), ("half_token", "f8")])

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LABEL_STREAM = N_COUNTS + N_CATEGORIES
# The rows that fix the bias lie where no log reaches.
_CALIBRATION_ROW = 1 << 62
_CALIBRATION_ROWS = 1 << 16


@dataclass(frozen=True)
class DayTruth:
    """The worth of the planted model on one day. Log losses in nats a row."""

    day: str
    rows: int
    clicks: int
    log_loss: float
    """Log loss of the planted probabilities: no model can be expected to do better."""
    click_rate_log_loss: float
    """Log loss of always answering the day's own click rate."""
    auc: float
    """AUC of the planted probabilities, exact: the share of (click, no click) pairs in the right order."""


@dataclass(frozen=True)
class Truth:
    """The contents of truth.json, which `generate` wrote."""

    seed: int
    rows: int
    bias: float
    days: tuple[DayTruth, ...]

    def day(self, day: str) -> DayTruth:
        """The truth of one day, named as in its folder (`2026-11-14`)."""
        for truth in self.days:
            if truth.day == day:
                return truth
        raise DataError(f"day {day} is not in this log; it has {self.days[0].day} to {self.days[-1].day}")


@dataclass(frozen=True)
class _Shard:
    name: str
    seed: int
    bias: float
    first_row: int
    rows: int


@dataclass(frozen=True)
class _Scored:
    """One shard's rows as the truth sees them: float32[rows], bool[rows], summed log loss in nats."""

    logits: NDArray[np.float32]
    clicked: NDArray[np.bool_]
    loss: float


def generate(
    directory: str | os.PathLike[str],
    *,
    rows: int,
    days: int = 8,
    seed: int = 0,
    shards_per_day: int = 4,
    first_day: str = "2026-11-14",
    processes: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Truth:
    """Write a click log as `directory/day=YYYY-MM-DD/part-NNNNN.parquet`, and its truth.json beside the days.

    Days, and the shards of a day, get equally many rows or one more. `overwrite` removes an earlier log's
    days first, if dfm made all that is in them. More `processes` write the same bytes; they are spawned, so a
    script that asks for more than one needs the `if __name__ == "__main__":` guard. `progress(done_rows)` is called
    here after each shard. Memory: one row group per process, and 5 bytes per row of one day.
    """
    _check_sizes(rows, days, shards_per_day, processes)
    _check_seed(seed)
    files.check_named(directory, "the folder of the log")
    names = _day_names(first_day, days)
    root = Path(directory)
    bias = _calibrate(seed)
    shards = _plan(names, _Shard("", seed, bias, 0, rows), shards_per_day)
    ledger, claim = _prepare(root, [shard.name for shard in shards], overwrite)
    truths = []
    done = 0
    with ledger.tidied():
        with mapping(min(processes, len(shards))) as map_shards:
            outcomes = map_shards(partial(_write_shard, str(root), claim), shards)
            for name in names:
                scored = []
                for outcome in islice(outcomes, shards_per_day):
                    scored.append(outcome)
                    done += len(outcome.clicked)
                    if progress is not None:
                        progress(done)
                truths.append(_day_truth(name, scored))
                with ledger.writing(f"{_folder(name)}/{DONE}", claim):
                    pass
        ledger.check_written([TRUTH_FILE])
        truth = Truth(seed, rows, bias, tuple(truths))
        files.write_bytes(str(root / TRUTH_FILE), (to_json(asdict(truth), indent=2) + "\n").encode())
        ledger.settle()
    return truth


def read_truth(directory: str | os.PathLike[str]) -> Truth:
    """The truth.json of a log that `generate` completed."""
    path = Path(directory) / TRUTH_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        days = tuple(DayTruth(**day) for day in fields.pop("days"))
        return Truth(days=days, **fields)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: not a synthetic log, or its generation was cut short; make the log again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); make the log again") from error


def _check_sizes(rows: int, days: int, shards_per_day: int, processes: int) -> None:
    for name, value in (("days", days), ("shards_per_day", shards_per_day), ("processes", processes)):
        if value < 1:
            raise SettingsError(f"{name} = {value}: must be at least 1")
    if rows < days * shards_per_day:
        raise SettingsError(
            f"rows = {rows}: {days} days of {shards_per_day} shards need at least {days * shards_per_day} "
            "rows; ask for more rows or fewer shards"
        )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise SettingsError(f"seed = {seed}: must be from 0 to 2^63 - 1")


def _day_names(first_day: str, days: int) -> list[str]:
    try:
        first = date.fromisoformat(first_day)
    except ValueError as error:
        raise SettingsError(f"first_day = {first_day!r}: must be a date such as 2026-11-14") from error
    return [str(first + timedelta(days=number)) for number in range(days)]


def _folder(day: str) -> str:
    return f"day={day}"


def _prepare(root: Path, shards: list[str], overwrite: bool) -> tuple[Ledger, str]:
    """Make room for a log of shards of these names; the mark of their claim. An earlier one of dfm goes; DataError
    where others' files lie among its days.
    """
    ledger = Ledger(str(root), SYNTHETIC)
    earlier = sorted(root.glob("day=*"))
    if earlier and not overwrite:
        raise DataError(
            f"{root} already holds a log ({earlier[0].name}, …); choose another folder, or allow overwriting"
        )
    own = {root / name for name in ledger.own()}
    found = (path for day in earlier for path in (day, *day.rglob("*")) if not path.is_dir())
    foreign = sorted(path for path in found if path not in own and not path.name.startswith("."))
    if foreign:
        raise DataError(f"{foreign[0]} lies among the log and was not made by dfm; choose another folder")
    markers = {f"{name.partition('/')[0]}/{DONE}" for name in shards}
    # First: whoever is still at work there puts nothing more in place.
    claim = ledger.claim([*shards, *sorted(markers), TRUTH_FILE])
    # truth.json goes first: a log without it is known to be incomplete.
    ledger.remove([TRUTH_FILE])
    ledger.remove()
    return ledger, claim


def _plan(names: list[str], log: _Shard, shards_per_day: int) -> list[_Shard]:
    """Cut the log's rows into equal shards, in time order."""
    n_shards = len(names) * shards_per_day
    edges = [log.rows * number // n_shards for number in range(n_shards + 1)]
    return [
        _Shard(
            f"{_folder(names[number // shards_per_day])}/part-{number % shards_per_day:05d}.parquet",
            log.seed,
            log.bias,
            edges[number],
            edges[number + 1] - edges[number],
        )
        for number in range(n_shards)
    ]


def _day_truth(day: str, shards: list[_Scored]) -> DayTruth:
    clicked = np.concatenate([shard.clicked for shard in shards])
    logits = np.concatenate([shard.logits for shard in shards])
    clicks = int(clicked.sum())
    return DayTruth(
        day=day,
        rows=len(clicked),
        clicks=clicks,
        log_loss=math.fsum(shard.loss for shard in shards) / len(clicked),
        click_rate_log_loss=_entropy(clicks / len(clicked)),
        auc=_exact_auc(logits, clicked),
    )


def _entropy(rate: float) -> float:
    """Log loss in nats of always answering the true rate."""
    return -sum(share * math.log(share) for share in (rate, 1.0 - rate) if share > 0.0)


def _exact_auc(scores: NDArray[np.float32], clicked: NDArray[np.bool_]) -> float:
    """Share of (click, no click) pairs in the right order; a tie counts half; 0.5 when there are none."""
    positive = scores[clicked]
    negative = np.sort(scores[~clicked])
    if len(positive) == 0 or len(negative) == 0:
        return 0.5
    below = np.searchsorted(negative, positive, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(negative, positive, side="right").sum(dtype=np.int64)
    return float((below + not_above) / (2.0 * len(positive) * len(negative)))


# --- Shards ---


def _write_shard(root: str, claim: str, shard: _Shard) -> _Scored:
    """Write one shard, row group by row group, under a temporary name until it is complete. StorageError where another
    log has been begun in the folder since.
    """
    ledger = Ledger(root, SYNTHETIC)
    # An Arrow schema stored in the file would make readers see dictionaries instead of plain strings.
    with (
        ledger.writing(shard.name, claim) as unfinished,
        pq.ParquetWriter(
            unfinished,
            SCHEMA,
            compression="snappy",
            use_dictionary=list(CATEGORY_COLUMNS),
            dictionary_pagesize_limit=4 * 1024 * 1024,
            store_schema=False,
        ) as writer,
    ):
        scored = [
            _write_row_group(writer, shard, first, min(ROW_GROUP_ROWS, shard.rows - first))
            for first in range(0, shard.rows, ROW_GROUP_ROWS)
        ]
    return _Scored(
        logits=np.concatenate([group.logits for group in scored]),
        clicked=np.concatenate([group.clicked for group in scored]),
        loss=math.fsum(group.loss for group in scored),
    )


def _write_row_group(writer: pq.ParquetWriter, shard: _Shard, offset: int, rows: int) -> _Scored:
    first_row = shard.first_row + offset
    counts, tokens = _draw(shard.seed, first_row, rows)
    logits = _planted_logits(np.uint64(shard.seed), tokens, _EFFECTS) + shard.bias
    clicked = np.empty(rows, np.bool_)
    loss = _draw_clicks(np.uint64(shard.seed), first_row, logits, clicked)
    arrays = [
        pa.array(clicked.view(np.int8)),
        *(pa.array(column, mask=bucket == 0) for column, bucket in zip(counts, tokens[:N_COUNTS], strict=True)),
        *(_category_array(column, ranks) for column, ranks in enumerate(tokens[N_COUNTS:])),
    ]
    writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), row_group_size=rows)
    return _Scored(logits.astype(np.float32), clicked, loss)


def _draw(seed: int, first_row: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Counts int64[13, rows], 0 where missing, and all columns' tokens, uint32[39, rows], counts first."""
    counts = np.empty((N_COUNTS, rows), np.int64)
    tokens = np.empty((N_COUNTS + N_CATEGORIES, rows), np.uint32)
    _draw_counts(np.uint64(seed), first_row, _COUNTS, counts, tokens[:N_COUNTS])
    _draw_ranks(np.uint64(seed), first_row, _CATEGORIES, tokens[N_COUNTS:])
    return counts, tokens


def _category_array(column: int, ranks: NDArray[np.uint32]) -> pa.DictionaryArray:
    """The strings of one column's ranks, uint32[rows]; rank 0 is a missing cell."""
    codes = np.empty(len(ranks), np.int32)
    distinct = np.empty(len(ranks), np.uint32)
    n_distinct = _encode(ranks, codes, distinct)
    text = np.empty((n_distinct, 8), np.uint8)
    _spell(np.uint32(column), distinct[:n_distinct], text)
    ends = np.arange(0, 8 * n_distinct + 1, 8, dtype=np.int32)
    strings = pa.StringArray.from_buffers(n_distinct, pa.py_buffer(ends), pa.py_buffer(text))
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=ranks == 0), strings)


# --- The laws, as records that the kernels read ---


def _category_records() -> NDArray[np.void]:
    """Constants of each column's inverse distribution: rank = floor((low + u * span)^power - offset)."""
    records = np.empty(N_CATEGORIES, _CATEGORY_DTYPE)
    for number, (cardinality, missing, exponent, offset) in enumerate(_CATEGORY_LAWS):
        low = (1.0 + offset) ** (1.0 - exponent)
        high = (cardinality + 1.0 + offset) ** (1.0 - exponent)
        records[number] = (missing, low, high - low, 1.0 / (1.0 - exponent), offset, cardinality)
    return records


def _half_rank(exponent: float, offset: float, record: np.void) -> float:
    """The rank that is expected `_HALF_WEIGHT_OCCURRENCES` times in a million rows."""
    density_at_zero = (exponent - 1.0) / abs(record["span"]) * 1e6 / _HALF_WEIGHT_OCCURRENCES
    return max(1.0, abs(density_at_zero) ** (1.0 / exponent) - offset)


def _effect_records() -> NDArray[np.void]:
    """Strength of each column's planted weights, counts first: these have too few buckets to shrink any."""
    records = np.empty(N_COUNTS + N_CATEGORIES, _EFFECT_DTYPE)
    records["linear"], records["factor"], records["half_token"] = _LINEAR_STDEV, _FACTOR_STDEV, np.inf
    for number, (_, _, exponent, offset) in enumerate(_CATEGORY_LAWS):
        records["half_token"][N_COUNTS + number] = _half_rank(exponent, offset, _CATEGORIES[number])
    return records


_CATEGORIES = _category_records()
_COUNTS = np.array(_COUNT_LAWS, _COUNT_DTYPE)
_EFFECTS = _effect_records()


def _calibrate(seed: int) -> float:
    """The bias that makes the click rate `CLICK_RATE` on a fixed sample, by bisection."""
    _, tokens = _draw(seed, _CALIBRATION_ROW, _CALIBRATION_ROWS)
    logits = _planted_logits(np.uint64(seed), tokens, _EFFECTS)
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2.0
        if np.mean(1.0 / (1.0 + np.exp(-(logits + middle)))) < CLICK_RATE:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


# --- Kernels. cache=True: a spawned process then loads them instead of compiling for seconds ---


@compiled(error_model="numpy")
def _mix(x):  # type: ignore[no-untyped-def]
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): uint64 to uint64, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled(error_model="numpy")
def _uniform(seed, row, stream):  # type: ignore[no-untyped-def]
    """The number in [0, 1) that belongs to a cell: row, and the column's number as stream."""
    key = _mix(seed * _GOLDEN + np.uint64(row))
    return np.float64(_mix(key + np.uint64(stream + 1) * _GOLDEN) >> np.uint64(11)) * 2.0**-53


@compiled(error_model="numpy")
def _bucket(count):  # type: ignore[no-untyped-def]
    """Token of a present count: negative, 0, 1 and 2 are tokens 1 to 4, then floor(ln(x)^2) from 5 on."""
    if count <= 2:
        return max(count, -1) + 2
    return 5 + int(math.log(count) ** 2)


@compiled(error_model="numpy")
def _draw_counts(seed, first_row, laws, counts, tokens):  # type: ignore[no-untyped-def]
    """Fill `counts` int64[13, rows] and `tokens` uint32[13, rows] in place."""
    for column in range(counts.shape[0]):
        law = laws[column]
        for row in range(counts.shape[1]):
            u = _uniform(seed, first_row + row, column)
            if u < law.missing:
                counts[column, row] = 0
                tokens[column, row] = 0
                continue
            # One draw serves twice: within [missing, 1) it is still uniform.
            u = (u - law.missing) / (1.0 - law.missing)
            if u < law.negative:
                count = -1 - int(2.0 * u / law.negative)
            else:
                u = (u - law.negative) / (1.0 - law.negative)
                count = int(min(law.median * (u / (1.0 - u)) ** law.tail, law.limit))
            counts[column, row] = count
            tokens[column, row] = _bucket(count)


@compiled(error_model="numpy")
def _draw_ranks(seed, first_row, laws, ranks):  # type: ignore[no-untyped-def]
    """Fill `ranks` uint32[26, rows] in place: 1 is the most frequent category, 0 a missing cell."""
    for column in range(ranks.shape[0]):
        law = laws[column]
        for row in range(ranks.shape[1]):
            u = _uniform(seed, first_row + row, N_COUNTS + column)
            if u < law.missing:
                ranks[column, row] = 0
                continue
            u = (u - law.missing) / (1.0 - law.missing)
            rank = int((law.low + u * law.span) ** law.power - law.offset)
            ranks[column, row] = min(max(rank, 1), law.cardinality)


@compiled(error_model="numpy")
def _planted_logits(seed, tokens, effects):  # type: ignore[no-untyped-def]
    """Logits without the bias, float64[rows], of tokens uint32[39, rows]."""
    root_3 = math.sqrt(3.0)
    logits = np.empty(tokens.shape[1], np.float64)
    sums = np.empty(RANK, np.float64)
    for row in range(tokens.shape[1]):
        sums[:] = 0.0
        linear = 0.0
        squares = 0.0
        for column in range(tokens.shape[0]):
            token = tokens[column, row]
            effect = effects[column]
            shrink = root_3 / (1.0 + token / effect.half_token)
            first = _mix((seed ^ _GOLDEN) + (np.uint64(column + 1) << np.uint64(40)) + np.uint64(token))
            linear += effect.linear * shrink * (np.float64(first >> np.uint64(11)) * 2.0**-52 - 1.0)
            # Ten bits of the second hash for each of the six coordinates, uniform in [-1, 1].
            bits = _mix(first)
            for factor in range(RANK):
                uniform = np.float64(bits & np.uint64(1023)) * (2.0 / 1023.0) - 1.0
                bits >>= np.uint64(10)
                v = effect.factor * shrink * uniform
                sums[factor] += v
                squares += v * v
        logits[row] = linear + 0.5 * (np.sum(sums * sums) - squares)
    return logits


@compiled(error_model="numpy")
def _draw_clicks(seed, first_row, logits, clicked):  # type: ignore[no-untyped-def]
    """Fill `clicked` bool[rows] in place; returns the summed log loss of the logits, nats."""
    loss = 0.0
    for row in range(len(logits)):
        clicked[row] = _uniform(seed, first_row + row, _LABEL_STREAM) < 1.0 / (1.0 + math.exp(-logits[row]))
        loss += math.log1p(math.exp(-logits[row] if clicked[row] else logits[row]))
    return loss


@compiled(error_model="numpy")
def _encode(ranks, codes, distinct):  # type: ignore[no-untyped-def]
    """Number the distinct ranks by first appearance: fills `codes` int32[n], `distinct` uint32[n] in place.

    Returns how many there are. Rank 0, the missing cell, is no category: its code is 0 and means nothing.
    """
    slots = 1
    while slots < 2 * len(ranks):
        slots *= 2
    table = np.full(slots, -1, np.int32)
    mask = np.uint64(slots - 1)
    n_distinct = 0
    for position in range(len(ranks)):
        rank = ranks[position]
        if rank == 0:
            codes[position] = 0
            continue
        slot = _mix(np.uint64(rank)) & mask
        while table[slot] >= 0 and distinct[table[slot]] != rank:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot] = n_distinct
            distinct[n_distinct] = rank
            n_distinct += 1
        codes[position] = table[slot]
    return n_distinct


@compiled(error_model="numpy")
def _spell(column, ranks, text):  # type: ignore[no-untyped-def]
    """Write eight hex digits per rank into `text` uint8[n, 8], in place.

    The digits are MurmurHash3's 32-bit finalizer of rank and column: one to one, so no two ranks of a column
    share a string.
    """
    for position in range(len(ranks)):
        x = np.uint32(ranks[position] + column * np.uint32(0x9E3779B1))
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        x = np.uint32(x ^ (x >> np.uint32(16)))
        for digit in range(8):
            nibble = (x >> np.uint32(28 - 4 * digit)) & np.uint32(15)
            text[position, digit] = nibble + (48 if nibble < 10 else 87)
