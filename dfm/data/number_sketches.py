"""Statistics of numeric columns, which transforms see before rows are hashed: sketches of parts, and what they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfm.data.bucketing import wants_quantiles
from dfm.data.columns import number_column
from dfm.data.parquet import BATCH_ROWS, Batch, Unit, naming_shard
from dfm.data.reading import Reading, teaching_batches
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import AUTO, TRANSFORMS, NumberStatistics, beyond_rounding

_SKETCH_SIZE = 2048
_GLANCE, _LEAST_GLANCE = 1 << 17, 1 << 12
"""Rows that are enough to see whether a column needs quantiles, and that a task looks at in any case."""


@dataclass(frozen=True, slots=True)
class NumberSketch:
    """Count, mean, sum of squared deviations and evenly spaced order statistics of a column's numbers."""

    count: int
    mean: float
    squares: float
    order_statistics: tuple[float, ...]


def columns_with_statistics(schema: ResolvedSchema) -> dict[str, str]:
    """Column to transform of the numeric fields whose transform must see the data first."""
    numeric = [entry for entry in schema.fields if entry.kind == "numeric"]
    return {entry.name: entry.transform for entry in numeric if TRANSFORMS[entry.transform].statistics}


def sketch_numbers(
    reading: Reading, units: Sequence[Unit], columns: Sequence[str] | None = None
) -> dict[str, NumberSketch]:
    """Sketch of numeric columns, of all whose transform needs one by default, over the rows of the units that label and
    weight let be trained on.
    """
    columns = list(columns_with_statistics(reading.schema)) if columns is None else columns
    return _sketch((batch for unit in units for batch in _number_batches(reading, unit, columns)), reading, columns)


def glance_at_numbers(
    reading: Reading, units: Sequence[Unit], columns: Sequence[str], n_tasks: int
) -> dict[str, NumberSketch]:
    """Sketch of numeric columns over the first rows of those: so many that all of `n_tasks` look at _GLANCE of them
    together, or at _LEAST_GLANCE each.
    """
    n_rows = min(max(_GLANCE // n_tasks, _LEAST_GLANCE), BATCH_ROWS)
    batches = (batch for unit in units for batch in _number_batches(reading, unit, columns, n_rows))
    return _sketch(_first(batches, n_rows), reading, columns)


def _first(batches: Iterable[Batch], n_rows: int) -> Iterator[Batch]:
    """The batches with the first so many rows, the last one cut short."""
    for batch in batches:
        yield replace(batch, data=batch.data.slice(0, n_rows))
        n_rows -= batch.data.num_rows
        if n_rows <= 0:
            return


def _number_batches(reading: Reading, unit: Unit, columns: Sequence[str], at_a_time: int = 0) -> Iterator[Batch]:
    return teaching_batches(reading, unit, reading.schema.sources(columns), at_a_time)


def _sketch(batches: Iterable[Batch], reading: Reading, columns: Sequence[str]) -> dict[str, NumberSketch]:
    collected: dict[str, list[NDArray[np.float64]]] = {column: [] for column in columns}
    for batch in batches:
        for column in columns:
            with naming_shard(batch):
                collected[column].append(number_column(batch.data, column, reading.schema))
    return {column: sketch_values(np.concatenate([*parts, np.zeros(0)])) for column, parts in collected.items()}


def sketch_values(values: NDArray[np.float64]) -> NumberSketch:
    """Sketch of finite numbers float64[n]."""
    if not len(values):
        return NumberSketch(0, 0.0, 0.0, ())
    ordered = np.sort(values)
    picks = ((np.arange(_SKETCH_SIZE) + 0.5) / _SKETCH_SIZE * len(ordered)).astype(np.int64)
    mean = float(values.mean())
    return NumberSketch(len(values), mean, float(((values - mean) ** 2).sum()), tuple(ordered[picks].tolist()))


def columns_for_quantiles(sketches: Mapping[str, Sequence[NumberSketch]], n_buckets: int) -> list[str]:
    """The columns of transform "auto" that get quantiles, by what was seen of them."""
    return [column for column, parts in sketches.items() if _divides_better(parts, n_buckets)]


def _divides_better(parts: Sequence[NumberSketch], n_buckets: int) -> bool:
    if not any(sketch.count for sketch in parts):
        return False
    values, weights = _order_statistics(parts)
    return wants_quantiles(values, weights, merge_sketches(parts, n_buckets))


def statistics_of(
    sketches: Mapping[str, Sequence[NumberSketch]], schema: ResolvedSchema
) -> dict[str, NumberStatistics]:
    """Statistics of columns whose every row was seen; of one of transform "auto" only where it gets quantiles."""
    automatic = {column for column, transform in columns_with_statistics(schema).items() if transform == AUTO}
    chosen = columns_for_quantiles(
        {c: parts for c, parts in sketches.items() if c in automatic}, schema.quantile_buckets
    )
    return {
        column: merge_sketches(parts, schema.quantile_buckets)
        for column, parts in sketches.items()
        if column not in automatic or column in chosen
    }


def _order_statistics(known: Sequence[NumberSketch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of all sketches that have any, and how many rows each stands for."""
    known = [sketch for sketch in known if sketch.count]
    values = np.concatenate([sketch.order_statistics for sketch in known])
    weights = np.concatenate([np.full(_SKETCH_SIZE, sketch.count / _SKETCH_SIZE) for sketch in known])
    return values, weights


def merge_sketches(sketches: Sequence[NumberSketch], n_buckets: int) -> NumberStatistics:
    """Mean and deviation by the update of Chan, Golub and LeVeque (1979); boundaries from order statistics."""
    count, mean, squares = 0, 0.0, 0.0
    known = [sketch for sketch in sketches if sketch.count]
    if not known:
        return NumberStatistics()
    for sketch in known:
        total = count + sketch.count
        delta = sketch.mean - mean
        squares += sketch.squares + delta * delta * count * sketch.count / total
        mean += delta * sketch.count / total
        count = total
    values, weights = _order_statistics(known)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / count
    picks = np.searchsorted(reached, np.arange(1, n_buckets) / n_buckets)
    boundaries = np.unique(values[order][np.minimum(picks, len(values) - 1)])
    return NumberStatistics(tuple(boundaries.tolist()), mean, float(beyond_rounding(np.sqrt(squares / count), mean)))
