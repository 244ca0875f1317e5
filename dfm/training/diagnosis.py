"""Failures of a training to learn, and the knob to turn: columns that say nothing, a full table, factors for nothing.

A job that ends well may have learnt little, and its metrics alone do not say why. Every finding is a fact that was
measured, in words, with the settings that change it; none of them stops a job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.hashing import MISSING, token_index
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import LOGARITHMS, NOTHING_KNOWN, QUANTILE, NumberStatistics
from dfm.data.vocabulary import FeatureCounts, Vocabulary
from dfm.events import MORE_IS_BETTER
from dfm.kernels.losses import QUANTILE as QUANTILE_LOSS
from dfm.model.objective import Objective
from dfm.pages.numbers import named_text, number_text
from dfm.settings.tables import READ_BY_EXACT, SGD

_NEARLY_ALL = 0.99
"""Share of a column's values that were not seen often enough to be kept, from which it says nothing."""
_FULL = 0.10
"""Share of values that share their parameters with a stranger, from which on that costs more than noise."""
_NOTHING = 1e-4
"""Relative gain below which a model, or its factors, may as well be left out."""

_KNOBS = {
    "categorical": "schema.categorical",
    "numeric": "schema.numeric",
    "list": "schema.lists",
    "cross": "schema.crosses",
}
"""The settings that name columns, by the kind of field that these become."""
_DRAWS = "training.draws"
_NOT_EXACT = ("model.calibration", "data.negative_rate")
"""The knob that MCMC alone reads, and knobs of other tables that no exact solver takes."""
_FEW_ROWS = 100
"""Rows to validate on below which their metrics are chance."""
_HALF = 0.5 + _NOTHING
"""The area under the curve up to which rows are in no order."""
_RANKS = 0.55
"""The area from which on they are in some order."""


@dataclass(frozen=True)
class Finding:
    """kind: one word for programs. message: what was seen. knobs: the settings to turn, the likeliest first."""

    kind: str
    message: str
    knobs: tuple[str, ...]
    column: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "knobs": list(self.knobs)}


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """Counts of a field: features that are kept, entries in all, entries of features that were too rare to be kept,
    features among the kept ones that were seen once, and entries of missing values.
    """

    features: int
    entries: int
    rare: int
    single: int
    missing: int = 0


def count_fields(
    vocabulary: Vocabulary, columns: Sequence[str], rows: FeatureCounts | None = None
) -> list[FieldCounts]:
    """The counts of every field, by these names of theirs; features that two columns share count for the first.

    rows: of some rows alone, where the vocabulary knows earlier ones, too; rare and seen once is what is so with these.
    """
    is_rare = np.zeros(vocabulary.n_features, np.bool_)
    is_rare[vocabulary.rare[vocabulary.rare >= 0]] = True
    occurrences, seen = vocabulary.counts, FeatureCounts(vocabulary.ids, vocabulary.counts, vocabulary.fields)
    if rows is not None:
        occurrences, seen = _occurrences(vocabulary, ~is_rare, rows.ids), rows
        is_rare = occurrences == 0
    n_fields, fields = len(vocabulary.rare), seen.fields.astype(np.int64)

    def total(those: NDArray[np.bool_], amounts: NDArray[np.int64] | None = None) -> list[int]:
        weights = None if amounts is None else amounts[those]
        return [int(n) for n in np.bincount(fields[those], weights, n_fields)]

    features = total(~is_rare)
    entries = total(np.ones(len(is_rare), np.bool_), seen.counts)
    rare = total(is_rare, seen.counts)
    single = total(~is_rare & (occurrences == 1))
    tokens = np.array([token_index(column, MISSING, vocabulary.hash_bits) for column in columns], np.uint32)
    missing = total(seen.ids == tokens[fields], seen.counts)
    return [FieldCounts(*numbers) for numbers in zip(features, entries, rare, single, missing, strict=True)]


def _occurrences(vocabulary: Vocabulary, kept: NDArray[np.bool_], ids: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The counts that the vocabulary has of features, int64[n]; 0 of those that are not among the kept ones."""
    order = np.flatnonzero(kept)[np.argsort(vocabulary.ids[kept])]
    if not len(order):
        return np.zeros(len(ids), np.int64)
    at = order[np.minimum(np.searchsorted(vocabulary.ids[order], ids), len(order) - 1)]
    return np.where(vocabulary.ids[at] == ids, vocabulary.counts[at], 0)


def column_findings(
    schema: ResolvedSchema,
    statistics: Mapping[str, NumberStatistics],
    counts: Sequence[FieldCounts],
    min_count: int,
    collided_share: float,
) -> list[Finding]:
    """Columns of which the model knows one value, or none often enough.

    statistics: what transforms learnt of numeric columns. collided_share: as in `table_finding`. Of values that all
    differ so many seem to occur again, and entries of other columns that share an index with one of them add to those
    of this column, up to about as many.
    """
    found, nearly_all = [], _NEARLY_ALL * (1.0 - 2.0 * min(collided_share, _FULL))
    for entry, seen in zip(schema.fields, counts, strict=True):
        if entry.kind not in _KNOBS or not seen.entries:
            continue
        lost = seen.rare + seen.single
        if seen.features == 1 and not seen.rare and seen.single == 0:
            found += _one_feature(entry, seen, statistics.get(entry.name, NOTHING_KNOWN))
        elif entry.kind != "numeric" and lost >= nearly_all * seen.entries:
            found.append(_too_rare(entry.name, lost / seen.entries, min_count))
    return found


def _one_feature(entry: Field, seen: FieldCounts, known: NumberStatistics) -> list[Finding]:
    """A column that says nothing, among those whose rows all have one feature, which may carry a number."""
    if seen.missing == seen.entries:
        message = f"column {entry.name!r} has no value in any row, so that it says nothing; leave it out"
        return [Finding("no-value", message, (_KNOBS[entry.kind],), entry.name)]
    if entry.kind != "numeric" or known.stdev == 0.0:
        message = f"column {entry.name!r} has one value in all rows, so that it says nothing; leave it out"
        return [Finding("one-value", message, (_KNOBS[entry.kind],), entry.name)]
    if not entry.bucketed:
        return []
    other = LOGARITHMS if known.boundaries or entry.transform == QUANTILE else QUANTILE
    message = (
        f"all numbers of column {entry.name!r} are in one bucket ({entry.transform}), so that it says nothing; choose "
        f"{other} for it, or leave it out if it has but one number"
    )
    return [Finding("one-bucket", message, (f"schema.transforms.{entry.name}", _KNOBS[entry.kind]), entry.name)]


def _too_rare(column: str, share: float, min_count: int) -> Finding:
    least = f"fewer than model.min_count = {min_count} times" if min_count > 1 else "no second time"
    message = (
        f"{share:.1%} of the values of column {column!r} were seen {least}, so that nothing was learnt of them; a "
        "column that names single rows says nothing: leave it out, or round it"
    )
    return Finding("never-seen-twice", message, ("schema.categorical", "model.min_count"), column)


def table_finding(collided_share: float, hash_bits: int) -> list[Finding]:
    """Whether the table is too full. collided_share: expected share of values that share an index with another."""
    if collided_share < _FULL:
        return []
    message = (
        f"about {collided_share:.0%} of the values share their parameters with another value: the hash table of "
        f"2^{hash_bits} is too full"
    )
    return [Finding("table-too-full", message, (f"model.hash_bits = {hash_bits + 2}", "model.min_count"))]


def start_finding(objective: Objective, metrics: Mapping[str, Any]) -> Finding:
    """No epoch was better than the parameters of training.warm_start, whose metrics these are."""
    worth = named_text(objective.watched, metrics[objective.watched])
    message = (
        f"no epoch was better on the validation rows than the start ({worth}): "
        "what is published is the model of training.warm_start, less warm_start_decay; that model itself may be better"
    )
    return Finding("nothing-new", message, ("data.train", "training.learning_rate", "data.validation"))


def validation_findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """Whether the rows that chose the parameters tell models apart: enough of them, and of both classes. metrics: of
    these rows; empty where none validate.
    """
    n_rows, rate = metrics.get("rows"), metrics.get("base_rate")
    is_one_class = rate in (0.0, 1.0)
    if n_rows is None or not (n_rows < _FEW_ROWS or is_one_class):
        return []
    are_alike = f", all of class {rate:.0f}" if is_one_class else ""
    message = (
        f"{n_rows:,} rows validate{are_alike}: by them a good model is hardly told from a bad one; let more rows "
        "validate, of both classes where there are two"
    )
    return [Finding("too-little-to-judge-by", message, ("data.validation_from", "data.validation"))]


def model_findings(
    objective: Objective, metrics: Mapping[str, Any], linear: Mapping[str, Any], solver: str = SGD
) -> list[Finding]:
    """Whether the model beats a constant, and its own linear part, by the metric that chose its parameters, and whether
    its predictions are of another rate than the rows. Both are metrics of the validation rows; `linear` is empty where
    the model has no factors. Knobs are those that the solver reads.
    """
    found = _model_findings(objective, metrics, linear)
    return [replace(each, knobs=tuple(knob for knob in each.knobs if _is_read(knob, solver))) for each in found]


def _is_read(knob: str, solver: str) -> bool:
    """Whether a solver reads a knob."""
    table, _, key = knob.partition(".")
    if solver == SGD:
        return knob != _DRAWS
    return knob not in _NOT_EXACT and (table != "training" or key in READ_BY_EXACT[solver])


def _model_findings(objective: Objective, metrics: Mapping[str, Any], linear: Mapping[str, Any]) -> list[Finding]:
    """The same, with the knobs of all solvers."""
    watched = objective.watched
    is_order = watched in MORE_IS_BETTER
    if worse := _in_no_order(watched, metrics) if is_order else _worse_than_constant(objective, metrics):
        knobs = ("training.learning_rate", "training.n_epochs", _DRAWS, "training.l2_linear", "schema")
        return [Finding("no-better-than-a-constant", worse, knobs)]
    found = _another_rate(metrics) if not objective.info.sha256 else []
    if found and not is_order:
        return found  # losses of two models that are both off do not say which one is better
    ours, theirs = objective.cost(metrics), objective.cost(linear)
    if ours is None or theirs is None or ours < theirs - _NOTHING * abs(theirs):
        return found
    with_factors, without = number_text(metrics[watched]), number_text(linear[watched])
    message = (
        f"without its factors the model is as good on the validation rows ({watched} {without}, with them "
        f"{with_factors}): the pairs of columns add nothing"
    )
    fewer = "model.n_factors = 0", "training.l2_factors", "training.n_epochs", _DRAWS
    return [*found, Finding("factors-add-nothing", message, fewer)]


def _another_rate(metrics: Mapping[str, Any]) -> list[Finding]:
    """Whether probabilities are worse than a constant for their mean alone."""
    auc, entropy, ratio, rate = (
        metrics.get(name) for name in ("auc", "normalized_entropy", "calibration", "base_rate")
    )
    if auc is None or entropy is None or ratio is None or rate is None:
        return []
    if auc < _RANKS or entropy < 1.0 - _NOTHING or entropy - _lost_by_mean(rate, ratio * rate) >= 1.0 - _NOTHING:
        return []
    message = (
        f"the model ranks the validation rows (auc {auc:.4f}), but predicts {ratio:.3g} times their click rate, which "
        f"makes it no better than always answering that rate (normalized entropy {entropy:.4f}): were they, or the "
        "rows to train on, drawn by their labels?"
    )
    return [Finding("another-rate", message, ("data.validation", "data.negative_rate", "model.calibration"))]


def _lost_by_mean(rate: float, predicted: float) -> float:
    """Normalized entropy that a constant has beyond 1 which is not the click rate: KL(rate ‖ predicted) / H(rate)."""
    if not (0 < rate < 1 and 0 < predicted < 1):
        return 0.0
    surprise = [-p * math.log(q) for p, q in ((rate, predicted), (1 - rate, 1 - predicted))]
    least = [-p * math.log(p) for p in (rate, 1 - rate)]
    return sum(surprise) / sum(least) - 1.0


def _in_no_order(metric: str, metrics: Mapping[str, Any]) -> str:
    area = metrics.get(metric)
    if area is None or area > _HALF:
        return ""
    return f"the model orders the validation rows no better than a constant ({named_text(metric, area)})"


def _worse_than_constant(objective: Objective, metrics: Mapping[str, Any]) -> str:
    if objective.info.sha256:
        return ""  # a loss of one's own may be smallest far from the click rate and the mean, and is known by it alone
    entropy, explained = metrics.get("normalized_entropy"), metrics.get("r2")
    aims_at_mean = objective.info.name != QUANTILE_LOSS.name
    if entropy is not None and entropy >= 1.0 - _NOTHING and not _another_rate(metrics):
        return (
            f"the model is no better than always answering the click rate (normalized entropy {entropy:.4f} on the "
            "validation rows)"
        )
    wrong, rate = metrics.get("error_rate"), metrics.get("base_rate")
    if wrong is not None and rate is not None and wrong >= min(rate, 1 - rate) * (1 - _NOTHING):
        return (
            f"the model is no better than always giving the same answer (error_rate {wrong:.4f} on the validation "
            f"rows, of which a share of {rate:.4f} is of class 1)"
        )
    if entropy is None and explained is not None and explained <= _NOTHING and aims_at_mean:
        return f"the model is no better than always answering the mean (r2 {explained:.4f} on the validation rows)"
    return ""
