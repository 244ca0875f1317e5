"""The gate before publication: thresholds that a candidate must reach beside the champion, on the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfm.errors import SettingsError

Metrics = Mapping[str, Any]
_TOLD = ("log_loss", "rmse", "auc", "normalized_entropy", "calibration", "base_rate", "r2", "rows", "weight")
"""Metrics that a verdict shows."""
_SAME = 1e-9
"""Relative difference of weights and click rates below which two evaluations saw the same rows."""


@dataclass(frozen=True)
class Gate:
    """What a candidate must reach on the validation window to become the champion."""

    log_loss_ratio: float = 1.0
    """Its log loss (regression: rmse) over the champion's, at most."""
    calibration_low: float = 0.9
    """Sum of predicted probabilities over clicks, at least."""
    calibration_high: float = 1.1
    normalized_entropy: float = 1.0
    """Its log loss over that of always answering the click rate stays below this (regression: 1 − r2 does)."""
    min_rows: int = 1000
    """Rows of the window; fewer decide nothing."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
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
        return cls(**values)


@dataclass(frozen=True)
class Verdict:
    """What the gate says: `refusals` are the thresholds that were missed, in words; none means that it passed."""

    refusals: tuple[str, ...]
    candidate: dict[str, Any]
    champion: dict[str, Any] = field(default_factory=dict)
    """Metrics of the champion on the same rows; empty where there is none yet."""

    @property
    def passed(self) -> bool:
        """Whether the candidate may become the champion."""
        return not self.refusals


def judge(candidate: Metrics, champion: Metrics | None, gate: Gate) -> Verdict:
    """Compare two evaluations of the same rows. SettingsError where the rows were not the same."""
    told = {name: candidate[name] for name in _TOLD if name in candidate}
    known = {name: champion[name] for name in _TOLD if name in champion} if champion else {}
    if champion:
        _check_same_rows(candidate, champion)
    return Verdict(tuple(_refusals(candidate, champion, gate)), told, known)


def _check_same_rows(candidate: Metrics, champion: Metrics) -> None:
    for name in ("rows", "weight", "base_rate"):
        ours, theirs = candidate.get(name), champion.get(name)
        if ours != theirs and (ours is None or theirs is None or abs(ours - theirs) > _SAME * abs(theirs)):
            raise SettingsError(
                f"candidate and champion were evaluated on different rows ({name} is {ours} and {theirs}); evaluate "
                "both on the same validation window"
            )


def _refusals(candidate: Metrics, champion: Metrics | None, gate: Gate) -> list[str]:
    found = []
    if candidate["rows"] < gate.min_rows:
        found.append(f"the window has {candidate['rows']} rows, fewer than min_rows = {gate.min_rows}")
    name = "log_loss" if "log_loss" in candidate else "rmse"
    loss = candidate[name]
    entropy = candidate.get("normalized_entropy") if name == "log_loss" else 1.0 - (candidate.get("r2") or 0.0)
    if loss is None or entropy is None:
        return [*found, f"the window does not define {name}: it has no rows, or labels of one class only"]
    if entropy >= gate.normalized_entropy:
        other = "always answering the click rate" if name == "log_loss" else "always answering the mean"
        found.append(
            f"it is {entropy:.4f} times as bad as {other}; the gate asks for less than {gate.normalized_entropy:g}"
        )
    if champion and champion.get(name) is not None and loss > gate.log_loss_ratio * champion[name]:
        found.append(
            f"its {name} {loss:.5f} is {loss / champion[name]:.4f} times the champion's {champion[name]:.5f}; the gate "
            f"allows {gate.log_loss_ratio:g}"
        )
    ratio = candidate.get("calibration")
    if name == "log_loss" and (ratio is None or not gate.calibration_low <= ratio <= gate.calibration_high):
        found.append(
            f"it predicts {ratio if ratio is None else f'{ratio:.3f}'} clicks for each one that came; the gate allows "
            f"{gate.calibration_low:g} to {gate.calibration_high:g}"
        )
    return found
