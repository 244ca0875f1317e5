"""The gate before publication: thresholds that a candidate must reach beside the champion, on the same rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfm.errors import SettingsError
from dfm.pages.numbers import number_text

Metrics = Mapping[str, Any]
_TOLD = (
    *("log_loss", "rmse", "loss", "error_rate", "auc", "normalized_entropy", "calibration", "base_rate", "r2"),
    *("group_auc", "ndcg_5", "ndcg_10", "mrr", "rows", "weight"),
)
"""Metrics that a verdict shows."""
_SAME = 1e-9
"""Relative difference of weights and click rates below which two evaluations saw the same rows."""
_DISORDER = "1 - group_auc"
_LOSSES = ("log_loss", "loss", "rmse", _DISORDER)
"""The metrics that models are compared by: the first of these that an evaluation has. `loss` is there where a model was
trained for another than the log loss or the squared error, which rmse then says little of."""
_CONSTANTS = {"log_loss": "always answering the click rate", _DISORDER: "any order"}
"""The answer that a model has to be better than; a regression than always the mean."""


@dataclass(frozen=True)
class Gate:
    """The thresholds that a candidate must reach on the validation window to become the champion."""

    log_loss_ratio: float = 1.0
    """Its log loss (regression: rmse, or the mean of another loss that it was trained for; of a model of pairs: 1 -
    group_auc) over the champion's, at most."""
    calibration_low: float = 0.9
    """Sum of predicted probabilities over clicks, at least."""
    calibration_high: float = 1.1
    normalized_entropy: float = 1.0
    """Its log loss over that of always answering the click rate stays below this (regression: 1 − r2 does, of another
    loss nothing is asked; of a model of pairs: 1 - group_auc over the half that any order has)."""
    min_rows: int = 1000
    """Rows of the window; fewer decide nothing."""
    slices: tuple[str, ...] = ()
    """Columns ("site", "device,hour") in no slice of which the candidate may be worse than the champion by more than"""
    slice_loss_ratio: float = 1.05
    """Its log loss there (regression: rmse, whatever the loss) over the champion's."""
    slice_min_rows: int = 1000
    """Rows of a slice; fewer decide nothing."""

    def __post_init__(self) -> None:
        if not isinstance(self.slices, list | tuple) or not all(isinstance(columns, str) for columns in self.slices):
            raise SettingsError(
                f"gate slices = {self.slices!r} is not legal: expected names of columns, such as site or device,hour "
                "(dfm publish --gate-by site)"
            )
        kinds = [",".join(name.strip() for name in columns.split(",")) for columns in self.slices]
        object.__setattr__(self, "slices", tuple(dict.fromkeys(kinds)))  # as evaluations name them
        for name, value in dataclasses.asdict(self).items():
            if name == "slices":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise SettingsError(f"gate {name} = {value!r} is not legal: expected a number, 0 or more")
        if self.calibration_low > self.calibration_high:
            raise SettingsError(
                f"gate calibration_low = {self.calibration_low} lies above calibration_high = {self.calibration_high}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gate:
        """The gate of some thresholds by name; the others take their defaults."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise SettingsError(f"the gate has no threshold {unknown[0]!r}; it has {', '.join(known)}")
        slices = values.get("slices", ())
        return cls(**{**values, "slices": (slices,) if isinstance(slices, str) else slices})


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: `refusals` are the thresholds that were missed, in words; none means that it passed."""

    refusals: tuple[str, ...]
    candidate: dict[str, Any]
    champion: dict[str, Any] = field(default_factory=dict)
    """Metrics of the champion on the same rows; empty where there is none yet."""

    @property
    def passed(self) -> bool:
        """Whether the candidate may become the champion."""
        return not self.refusals


def judge(candidate: Metrics, champion: Metrics | None, gate: Gate) -> Verdict:
    """Compare two evaluations of the same rows. SettingsError where rows or slices were not the same."""
    told = {name: candidate[name] for name in _TOLD if name in candidate}
    known = {name: champion[name] for name in _TOLD if name in champion} if champion else {}
    if champion:
        _check_same_rows(candidate, champion)
    candidate, champion = _with_disorder(candidate), champion and _with_disorder(champion)
    return Verdict(tuple(_refusals(candidate, champion, gate)), told, known)


def _with_disorder(metrics: Metrics) -> Metrics:
    """The metrics with what is less where the order within groups is better, where they tell of that."""
    order = _defined(metrics, "group_auc")
    return {**metrics, _DISORDER: None if order is None else 1.0 - order} if "group_auc" in metrics else metrics


def _defined(metrics: Metrics, name: str) -> float | None:
    """A metric that is a finite number; None where it is missing or not defined: NaN compares with nothing."""
    value = metrics.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def _check_same_rows(candidate: Metrics, champion: Metrics) -> None:
    lost, remedy = [_without_prediction(each) for each in (candidate, champion)], "evaluate both on the same window"
    if any(lost):
        remedy = (
            f"rows without a finite prediction: {lost[0]} of the candidate, {lost[1]} of the champion. Correct their "
            "numbers, or leave these rows out of the validation window"
        )
    for name in ("rows", "weight", "base_rate"):
        ours, theirs = _defined(candidate, name), _defined(champion, name)
        if ours != theirs and (ours is None or theirs is None or abs(ours - theirs) > _SAME * abs(theirs)):
            raise SettingsError(
                f"candidate and champion were evaluated on different rows ({name} is {_told(ours)} and "
                f"{_told(theirs)}); {remedy}"
            )


def _without_prediction(metrics: Metrics) -> int:
    """Rows that an evaluation left out as the model has no finite prediction for them."""
    from dfm.data.row_checks import NOT_PREDICTED  # a DAG is parsed with this module, and Numba is not light

    reasons: Mapping[str, int] = metrics.get("account", {}).get("reasons", {})
    return sum(count for reason, count in reasons.items() if reason.endswith(f": {NOT_PREDICTED}"))


def _told(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.9g}"


def _refusals(candidate: Metrics, champion: Metrics | None, gate: Gate) -> list[str]:
    found = []
    if candidate["rows"] < gate.min_rows:
        found.append(f"the window has {candidate['rows']} rows, fewer than min_rows = {gate.min_rows}")
    name = next((name for name in _LOSSES if name in candidate), "log_loss")
    loss, entropy = _defined(candidate, name), _entropy(candidate, name)
    if loss is None or (entropy is None and name != "loss"):
        return [*found, f"the window does not define {name}: it has no rows, or labels that are all the same"]
    if entropy is not None and entropy >= gate.normalized_entropy:
        other = _CONSTANTS.get(name, "always answering the mean")
        found.append(
            f"it is {entropy:.4f} times as bad as {other}; the gate asks for less than {gate.normalized_entropy:g}"
        )
    found += _beside_champion(name, loss, champion, gate) if champion else []
    ratio = _defined(candidate, "calibration")
    if name == "log_loss" and (ratio is None or not gate.calibration_low <= ratio <= gate.calibration_high):
        found.append(
            f"it predicts {ratio if ratio is None else f'{ratio:.3f}'} clicks for each one that came; the gate allows "
            f"{gate.calibration_low:g} to {gate.calibration_high:g}"
        )
    return found + _worse_slices(name, candidate, champion or {}, gate)


def _worse_slices(name: str, candidate: Metrics, champion: Metrics, gate: Gate) -> list[str]:
    """For each kind of slice, the one in which the candidate lost most against the champion, where that is too much.
    SettingsError where an evaluation was not sliced so.
    """
    found, name = [], "rmse" if name == "loss" else name  # slices have the metrics of their task alone
    for kind in gate.slices:
        rivals = {tuple(each["slice"].values()): each for each in (_slices(champion, kind) if champion else ())}
        ratios = []
        for record in _slices(candidate, kind):
            ours, theirs = (_defined(each, name) for each in (record, rivals.get(tuple(record["slice"].values()), {})))
            if ours is not None and theirs and ours > gate.slice_loss_ratio * theirs:
                ratios.append((ours / theirs, record))
        if ratios:
            ratio, worst = max(ratios, key=lambda pair: pair[0])
            where = ", ".join(f"{column} = {value}" for column, value in worst["slice"].items())
            more = f", and {len(ratios) - 1} more slices are as much worse" if ratios[1:] else ""
            found.append(
                f"where {where} its {name} is {ratio:.3f} times the champion's on {worst['rows']:,} rows{more}; the "
                f"gate allows {gate.slice_loss_ratio:g}"
            )
    return found


def _slices(metrics: Metrics, kind: str) -> Sequence[Metrics]:
    """The records of one kind of slice. SettingsError where there are none of it, not even an empty list."""
    sliced: Mapping[str, Sequence[Metrics]] = metrics.get("slices", {})
    if kind not in sliced:
        there = ", ".join(sliced) or "none"
        raise SettingsError(
            f"gate slices = {kind!r} is no kind of slice of an evaluation, which has {there}; evaluate candidate and "
            "champion by it"
        )
    return sliced[kind]


def _entropy(metrics: Metrics, name: str) -> float | None:
    """The model's loss over that of a constant; None where the rows, or its loss, do not tell."""
    if name == "log_loss":
        return _defined(metrics, "normalized_entropy")
    if name == "loss":  # what the best constant answer has of it is not known
        return None
    if name == _DISORDER:
        disorder = _defined(metrics, name)
        return None if disorder is None else 2.0 * disorder
    explained = _defined(metrics, "r2")
    return None if explained is None else 1.0 - explained


def _beside_champion(name: str, loss: float, champion: Metrics, gate: Gate) -> list[str]:
    best = _defined(champion, name)
    if name == "loss" and name not in champion:
        return ["the champion was trained for another loss, so that nothing says which is better; name another alias"]
    if best is None:
        return [f"the champion has no {name} on these rows, so that nothing says which of the two is better"]
    if loss - best <= (gate.log_loss_ratio - 1.0) * abs(best):  # counts have losses below 0
        return []
    times = f"{loss / best:.4f} times " if best > 0 else "above "
    ours, theirs = number_text(loss), number_text(best)
    return [f"its {name} {ours} is {times}the champion's {theirs}; the gate allows {gate.log_loss_ratio:g}"]
