"""Slices of an evaluation: which are shown, and what a second walk over their rows adds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from dfm.data.arrow_types import root_of
from dfm.distributed.evaluate import Evaluation
from dfm.errors import DataError, SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.group_auc import GroupSums, group_sums
from dfm.model.metrics import ClassificationTally
from dfm.model.slices import Chosen, Slicing, worst_first

Again = Callable[[Sequence[Chosen]], list[list[ClassificationTally]]]
"""Walks the rows once more, for tallies of chosen slices."""


def check_slicing(model: FMModel, slicing: Slicing) -> None:
    """SettingsError where a model's scores have no such metrics."""
    if slicing.by and model.task != "regression" and model.objective.info.link != "sigmoid":
        raise SettingsError(
            f"slices need a model of probabilities or numbers; the loss {model.objective.info.name} gives scores that "
            "are neither. Leave them out."
        )
    if slicing.group and model.task == "regression":
        raise SettingsError(f"group = {slicing.group!r} orders clicked rows before others; a regression has none")


def check_columns(model: FMModel, slicing: Slicing, tables: Iterable[Collection[str]]) -> None:
    """DataError where a column of slices or groups is in none of the tables, whose columns these are."""
    missing, there = list(slicing.columns), dict[str, None]()
    for names in tables if missing else ():
        there |= dict.fromkeys(names)
        missing = [name for name in missing if root_of(name, names) is None]
        if not missing:
            return
    if missing and there:
        name = missing[0]
        knob = "by" if any(name in names for names in slicing.by) else "group"
        raise DataError(
            f"{knob} = {name!r} names no column of the data; slices and groups are made of those that are there: "
            f"{', '.join([*there][:50])}.{_hint(model, name, [*there])}"
        )


def _hint(model: FMModel, name: str, there: Sequence[str]) -> str:
    """A way out where a column is not there."""
    derived = [entry for entry in model.schema.derived if entry.name == name]
    if derived:
        read = " and ".join(repr(column) for column in derived[0].columns)
        return f" The model derives {name!r} from {read}; write it into the data to slice by it"
    nearest = difflib.get_close_matches(name, there, n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def check_threshold(model: FMModel, threshold: float | None) -> None:
    """SettingsError where there is no such probability, or the model has none."""
    if threshold is None:
        return
    if not (isinstance(threshold, int | float | np.floating) and 0 < threshold < 1):
        raise SettingsError(f"threshold = {threshold!r} is not legal: expected a probability between 0 and 1")
    if model.objective.info.link != "sigmoid":
        raise SettingsError(
            f"threshold = {threshold} is a probability, and the model's loss {model.objective.info.name} gives none; "
            "leave it out"
        )


def sliced_metrics(
    model: FMModel, slicing: Slicing, found: Evaluation, again: Again, top: int, min_rows: int
) -> dict[str, Any]:
    """Records of the worst slices under "slices", by their columns, and metrics of groups; nothing where none are
    wanted.
    """
    if not slicing.columns or found.slices is None:
        return {}
    is_regression = model.task == "regression"
    worst = [worst_first(found.slices, number, min_rows, top, is_regression) for number in range(len(slicing.by))]
    if not is_regression and any(worst):
        _add_order(slicing, worst, again)
    slices = {",".join(names): records for names, records in zip(slicing.by, worst, strict=True)}
    return {**({"slices": slices} if slicing.by else {}), **_groups(slicing, found)}


_MOST_ORDERED = 200
"""Slices of a kind, the worst first, whose rows are brought in the order of their scores."""


def _add_order(slicing: Slicing, worst: Sequence[list[dict[str, Any]]], again: Again) -> None:
    """Add the AUC to the first records of each kind, in place; it is null in the others."""
    for record in (record for records in worst for record in records):
        record |= {"auc": None, "auc_error": None}
    worst = [records[:_MOST_ORDERED] for records in worst]
    kinds = zip(slicing.by, worst, strict=True)
    chosen = [Chosen(names, tuple(tuple(each["slice"].values()) for each in records)) for names, records in kinds]
    for records, tallies in zip(worst, again(chosen), strict=True):
        for record, tally in zip(records, tallies, strict=True):
            metrics = tally.metrics()
            record |= {"auc": metrics["auc"], "auc_error": metrics["auc_error"]}


def _groups(slicing: Slicing, found: Evaluation) -> dict[str, Any]:
    if not slicing.group:
        return {}
    here = [group_sums(table) for table in found.slices.groups] if found.slices else []
    return sum([*found.groups, *here], GroupSums()).metrics()
