"""Fits on Parquet shards: read into this process, or trained as a job on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dfm.data.duplicates import check_named_once
from dfm.data.parquet import feature_schema, find_shards, read_unit
from dfm.errors import SettingsError
from dfm.estimators.features import is_path
from dfm.training.plan import plan_reading


def paths_of(given: Any) -> list[str]:
    """A path or paths, as a list."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(path) for path in given]


def read_shards(paths: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of shards as one table, of these columns or of all, those of the paths too."""
    shards = find_shards(paths_of(paths))
    check_named_once(shards)
    units = [unit for task in plan_reading(shards) for unit in task]
    names = list(columns) if columns is not None else list(feature_schema(shards[0]).names)
    return pa.Table.from_batches([batch.data for unit in units for batch in read_unit(unit, names)])


def check_names(y: Any, sample_weight: Any) -> None:
    """SettingsError where labels, or weights that are not None, of shards are no names of columns."""
    if not isinstance(y, str) or not isinstance(sample_weight, str | None):
        raise SettingsError("X is a path of shards: y and sample_weight must be names of columns in them")


def read_labelled(paths: Any, y: str, sample_weight: str | None) -> tuple[pa.Table, Any, Any]:
    """All rows of shards without the columns of labels and weights, and these. SettingsError where one is missing."""
    table = read_shards(paths)
    for name in (y, sample_weight):
        if name is not None and name not in table.column_names:
            raise SettingsError(f"the shards have no column {name!r}; they have {', '.join(table.column_names)}")
    labels = table.column(y).to_numpy()
    weights = None if sample_weight is None else table.column(sample_weight).to_numpy()
    return table.drop_columns([name for name in (y, sample_weight) if name]), labels, weights


def read_evaluation(eval_set: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """An eval_set (X, y, weights or None) of shards as one of rows; any other as it is. SettingsError where it names no
    columns of its shards.
    """
    shards, label, weight = eval_set
    if not is_path(shards):
        return eval_set
    if not isinstance(label, str) or not isinstance(weight, str | None):
        raise SettingsError("eval_set is of shards: y and sample_weight must be names of columns in them")
    return read_labelled(shards, label, weight)


def validation_paths(eval_set: Any, *columns: str | None) -> list[str]:
    """The shards that a job validates on. SettingsError where eval_set is something else, or names other columns than
    the fit: those of labels, of groups if it has any (which need not be named again), and of weights or None.
    """
    if eval_set is None:
        return []
    found = eval_set[0] if isinstance(eval_set, list) and len(eval_set) == 1 else eval_set
    if not isinstance(found, tuple) or not 1 < len(found) <= len(columns) + 1 or not is_path(found[0]):
        raise SettingsError("a job on shards validates on shards: eval_set = (path, names of columns …), or nothing")
    *others, _ = columns
    named = (*found[1:], *others[len(found) - 1 :], None)[: len(columns)]
    if named != columns:
        raise SettingsError(
            f"eval_set names the columns {named}, and the fit {columns}: a job has the same ones in all rows. Name "
            "these, or leave client out, so that rows are read into this process"
        )
    return paths_of(found[0])
