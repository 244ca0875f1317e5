"""Metrics by slice: of the rows of each site, or of each device and hour, and of the order of rows within a group.

Sums of a slice are rows of an Arrow table that grows with the slices and not with the rows; where there are more slices
than `MOST_SLICES` the smallest are dropped, and how many rows a slice may lack by that is told. What needs rows in the
order of their scores is made in a second walk, for the slices that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.texts import texts_of
from dfm.errors import SettingsError
from dfm.model.group_auc import rows_by_group
from dfm.model.metrics import ClassificationTally
from dfm.settings.arguments import checked
from dfm.settings.constraints import Text

MOST_SLICES = 1 << 20
"""Slices of one kind that are kept at a time."""
BUCKETS = 16
"""Parts that the groups of `--group` are dealt into."""
_SUMS = ("Σ rows", "Σ weight", "Σ labels", "Σ predictions", "Σ loss", "Σ variance")
"""Columns of sums; no column of the data is likely to be called so, and one that is is refused."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slicing:
    """The slices and groups that are wanted: columns of each kind of slice, and the column of groups or ""."""

    by: tuple[tuple[str, ...], ...] = ()
    group: str = ""

    @classmethod
    def of(cls, by: str | Sequence[str | Sequence[str]], group: str = "") -> Slicing:
        """From names: "site", "device,hour" or a list of columns; one of these, or several. SettingsError where one is
        empty or there twice, or it is no name.
        """
        given = [by] if isinstance(by, str) else by
        try:
            listed = [each.split(",") if isinstance(each, str) else each for each in given]
            found = tuple(tuple(name.strip() for name in each) for each in listed)
        except (TypeError, AttributeError):
            raise SettingsError(f"by = {by!r} holds no name of a column; write column,column") from None
        checked("group", group, "", Text())
        for names in found:
            if not all(names) or len(set(names)) < len(names) or {*names} & {*_SUMS}:
                raise SettingsError(f"by = {','.join(names)!r} names a column twice, or none; write column,column")
        return cls(tuple(dict.fromkeys(found)), group)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read."""
        every = [name for names in self.by for name in names]
        return tuple(dict.fromkeys([*every, *([self.group] if self.group else [])]))


@dataclass(frozen=True)
class SliceSums:
    """Sums of some rows. tables: of each kind of slice, its columns as text and the sums; lacking: rows that a slice of
    it may lack at most; groups: of each bucket group, score, label and weight of its rows.
    """

    tables: tuple[pa.Table, ...]
    lacking: tuple[int, ...]
    groups: tuple[pa.Table, ...] = field(default=(), repr=False)

    def __add__(self, other: SliceSums) -> SliceSums:
        pairs = [_merged(_copied(pa.concat_tables(each))) for each in zip(self.tables, other.tables, strict=True)]
        lacking = [a + b + c for a, b, (_, c) in zip(self.lacking, other.lacking, pairs, strict=True)]
        groups = [pa.concat_tables(each) for each in zip(self.groups, other.groups, strict=True)]
        return SliceSums(tuple(table for table, _ in pairs), tuple(lacking), tuple(groups))


@dataclass(frozen=True)
class ScoredRows:
    """Good rows of a batch: their columns, and float64[n_rows] each of the scores that predictions are made of, these,
    labels, weights, and the scores before a calibration.
    """

    data: pa.RecordBatch
    scores: Floats
    predictions: Floats
    labels: Floats
    weights: Floats
    raw: Floats

    def keys(self, columns: Sequence[str]) -> list[pa.Array]:
        """Columns as text. DataError where one is of lists."""
        return [texts_of(self.data.column(name), name) for name in columns]


def summed(rows: ScoredRows, slicing: Slicing, is_regression: bool) -> SliceSums:
    """The sums of some rows."""
    loss = losses_of(rows.scores, rows.predictions, rows.labels, is_regression)
    variance = np.zeros(len(loss)) if is_regression else rows.predictions * (1 - rows.predictions)
    amounts = [np.ones(len(loss)), *(rows.weights * x for x in (1.0, rows.labels, rows.predictions, loss))]
    sums = dict(zip(_SUMS, [*amounts, rows.weights**2 * variance], strict=True))
    pairs = [
        _merged(pa.table([*rows.keys(names), *map(pa.array, sums.values())], [*names, *_SUMS])) for names in slicing.by
    ]
    kept, lacking = tuple(table for table, _ in pairs), tuple(lost for _, lost in pairs)
    return SliceSums(kept, lacking, _grouped(rows, slicing.group) if slicing.group else ())


def losses_of(scores: Floats, predictions: Floats, labels: Floats, is_regression: bool) -> Floats:
    """Loss of each row: squared error, or log loss of a logit in nats. All float64[n_rows]."""
    if is_regression:
        return (predictions - labels) ** 2
    losses: Floats = np.maximum(scores, 0) + np.log1p(np.exp(-np.abs(scores))) - labels * scores
    return losses


def _copied(table: pa.Table) -> pa.Table:
    """The table in memory of its own: what comes over the wire lies at odd addresses, of which Arrow warns."""
    return table.take(pa.array(np.arange(table.num_rows)))


def _merged(table: pa.Table) -> tuple[pa.Table, int]:
    """A row for each slice, in the order in which they were met, and how many rows the largest dropped slice had."""
    names = [name for name in table.column_names if name not in _SUMS]
    found = table.group_by(names, use_threads=False).aggregate([(name, "sum") for name in _SUMS])
    found = found.rename_columns(
        [name.removesuffix("_sum") if name not in names else name for name in found.column_names]
    )
    found = found.select([*names, *_SUMS])
    if found.num_rows <= MOST_SLICES:
        return found, 0
    order = np.argsort(-found.column(_SUMS[0]).to_numpy(), kind="stable")
    lost = int(found.column(_SUMS[0])[int(order[MOST_SLICES])].as_py())
    return found.take(pa.array(np.sort(order[:MOST_SLICES]))), lost


def _grouped(rows: ScoredRows, column: str) -> tuple[pa.Table, ...]:
    (keys,) = rows.keys([column])
    table = rows_by_group(keys, rows.scores, rows.labels, rows.weights)
    distinct = keys.dictionary_encode()
    of_key = np.array([sum(text.encode()) % BUCKETS for text in distinct.dictionary.to_pylist()], np.int64)
    buckets = of_key[distinct.indices.to_numpy()] if len(keys) else np.zeros(0, np.int64)
    return tuple(table.filter(pa.array(buckets == bucket)) for bucket in range(BUCKETS))


# ------------------------------------------------------------------------------------------ what is told ----


def worst_first(sums: SliceSums, number: int, min_rows: int, top: int, is_regression: bool) -> list[dict[str, Any]]:
    """Records of the worst slices of one kind, among those with so many rows: by normalized entropy, or by rmse. Where
    all labels are the same, that is not defined: it stands by its log loss over the entropy that one row more, of the
    other label, would give it.
    """
    rows = sums.tables[number].to_pylist()
    records = [_record(row, is_regression) for row in rows if row[_SUMS[0]] >= max(min_rows, 1)]

    def badness(record: dict[str, Any]) -> tuple[Any, ...]:
        known = record["rmse"] if is_regression else _entropy_to_sort_by(record)
        return (known is None, -(known or 0.0), -record["rows"], list(record["slice"].values()))

    lacking = {"rows_lacking_at_most": sums.lacking[number]} if sums.lacking[number] else {}
    return [{**record, **lacking} for record in sorted(records, key=badness)[:top]]


def _entropy_to_sort_by(record: Mapping[str, Any]) -> float | None:
    """The normalized entropy of a slice; where that is not defined, its log loss over the entropy that one row more, of
    the other label, would give it: much where many clicks were expected and none came, little where hardly one was.
    None without any weight.
    """
    known: float | None = record["normalized_entropy"]
    if known is None and record["log_loss"] is not None:
        return float(record["log_loss"]) / _entropy(1 / (record["rows"] + 1))
    return known


def _record(row: Mapping[str, Any], is_regression: bool) -> dict[str, Any]:
    """A slice: its values, rows, mean label and prediction, loss, calibration with its interval of 95 %."""
    values = {name: value for name, value in row.items() if name not in _SUMS}
    n_rows, weight, labels, predictions, loss, _ = (row[name] for name in _SUMS)
    mean, predicted, mean_loss = (_ratio(each, weight) for each in (labels, predictions, loss))
    told: dict[str, float] = {"mean_label": mean, "mean_prediction": predicted}
    if is_regression:
        told |= {"rmse": math.sqrt(mean_loss), "mean_error": predicted - mean}
    else:
        told |= {"log_loss": mean_loss, "normalized_entropy": _ratio(mean_loss, _entropy(mean)), **_calibration(row)}
    found = {name: value if math.isfinite(value) else None for name, value in told.items()}
    return {"slice": values, "rows": int(n_rows), **found}


def _calibration(row: Mapping[str, Any]) -> dict[str, float]:
    """Predictions over labels, and between what it would lie in 95 of 100 cases if each prediction were right."""
    _, _, found, expected, _, variance = (row[name] for name in _SUMS)
    spread = 1.96 * math.sqrt(max(variance, 0.0))
    return {
        "calibration": _ratio(expected, found),
        "calibration_low": _ratio(expected, found + spread),
        "calibration_high": _ratio(expected, found - spread) if found > spread else math.inf,
    }


def _entropy(rate: float) -> float:
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True)
class Chosen:
    """The slices of one kind that are shown: columns, and the values of each slice."""

    columns: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]


def tallied(rows: ScoredRows, chosen: Chosen) -> list[ClassificationTally]:
    """A tally of each slice's rows."""
    texts = rows.keys(chosen.columns)
    found = []
    for key in chosen.keys:
        inside = np.ones(len(rows.labels), np.bool_)
        for array, value in zip(texts, key, strict=True):
            inside &= pc.equal(array, value).to_numpy(zero_copy_only=False)
        found.append(ClassificationTally.from_scores(rows.scores[inside], rows.labels[inside], rows.weights[inside]))
    return found
