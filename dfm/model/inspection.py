"""The contents of a model, in numbers that a person can read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import hashing
from dfm.data.schema import CROSS_SIGN, Field
from dfm.data.transforms import MOMENTS, NOTHING_KNOWN, TRANSFORMS
from dfm.errors import DataError, SettingsError
from dfm.events import compared
from dfm.model.fm_model import FMModel
from dfm.model.token_names import TokenNames
from dfm.model.tokens import MISSING
from dfm.settings.groups import names_of

Floats = NDArray[np.float64]


def describe_model(model: FMModel) -> dict[str, Any]:
    """The model's summary and one record per field, the most telling field first (JSON-ready)."""
    metadata, vocabulary, loss = model.metadata, model.vocabulary, model.objective.info
    summary = {
        "task": model.task,
        "loss": loss.name if loss.parameter is None else f"{loss.name}({loss.parameter:g})",
        "link": "probit" if model.is_probit else loss.link,
        **_solving(model),
        "family": model.table.layout.family,
        **({"order": model.table.layout.order} if model.table.layout.order else {}),
        "n_factors": model.n_factors,
        **_groups(model),
        **({} if model.calibration is None else {"calibration": model.calibration.kind}),
        "hash_bits": vocabulary.hash_bits,
        "features": vocabulary.n_features,
        "features_with_factors": vocabulary.n_factored,
        "bias": float(model.table.bias_value),
        "dfm_version": metadata.get("dfm_version", ""),
        "data_fingerprint": metadata.get("data_fingerprint", ""),
        "parameters_sha256": model.parameters_sha256(),
        **{f"validation_{k}": v for k, v in metadata.get("validation", {}).items() if k != "calibration_bins"},
        **{f"choice_{key}": value for key, value in choice_of(metadata).items()},
        **{f"rows_{key}": value for key, value in metadata.get("rows", {}).items() if key != "reasons"},
    }
    found = {"summary": summary, "fields": _fields(model), "settings": metadata.get("settings", {})}
    strengths = strengths_of(model)
    return {**found, "pairs": strongest_and_weakest(*strengths)} if strengths else found


def choice_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The model that was chosen, "factors" or "linear", and what both came to on the rows that validated, by the metric
    that chose; empty where there was no choice.
    """
    choice = metadata.get("choice")
    if not choice:
        return {}
    metric, losses = choice.get("metric", "loss"), choice["losses"]  # earlier versions did not note the metric
    return {
        "chosen": choice["chosen"],
        "compared_by": metric,
        "with_factors": _worth(metric, losses["factors"]),
        "without_factors": _worth(metric, losses["linear"]),
    }


def _worth(metric: str, loss: float | None) -> float | None:
    return None if loss is None else compared(metric, loss)


_SHOWN = 10
"""Pairs of fields that are shown of either end."""


def strengths_of(model: FMModel) -> tuple[list[str], NDArray[np.float64]] | None:
    """Names of the fields, and the number of every pair of them, float64[n_fields, n_fields]; None where a family has
    none.
    """
    blocks = [block for block in model.table.layout.own if block.rows == "field pair"]
    if not blocks:
        return None
    names = [entry.name for entry in model.schema.fields]
    matrix = np.zeros((len(names), len(names)))
    matrix[np.tril_indices(len(names))] = model.table.values(blocks[0])
    return names, matrix + np.tril(matrix, -1).T


def strongest_and_weakest(names: Sequence[str], matrix: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The pairs of two fields with the strengths farthest from 0, and those nearest to it, in that order. matrix
    float64[n_fields, n_fields].
    """
    first, second = np.tril_indices(len(names), -1)
    order = np.argsort(-np.abs(matrix[first, second]), kind="stable")
    shown = order if len(order) <= 2 * _SHOWN else np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    return [
        {"rank": int(place) + 1, "fields": f"{names[second[at]]} x {names[first[at]]}",
         "strength": float(matrix[first[at], second[at]])}
        for place, at in zip(np.argsort(order)[shown], shown, strict=True)
    ]  # fmt: skip


def _groups(model: FMModel) -> dict[str, str]:
    """The fields of each group, where the family has groups."""
    groups = model.table.layout.groups
    if not groups:
        return {}
    names = names_of(model.metadata.get("settings", {}).get("model", {}).get("groups", "auto"), groups)
    members = [[entry.name for entry in model.schema.fields if groups[entry.index] == g] for g in range(len(names))]
    return {"groups": "; ".join(f"{name}: {', '.join(own)}" for name, own in zip(names, members, strict=True))}


def _solving(model: FMModel) -> dict[str, Any]:
    """The solver, where it is known, and the number of draws that a model has."""
    settings = model.metadata.get("settings") or {}
    solver = settings.get("training", settings.get("estimator", {})).get("solver")
    draws = {} if model.draws is None else {"draws": model.draws.number}
    return ({"solver": solver} if solver else {}) | draws


def _fields(model: FMModel) -> list[dict[str, Any]]:
    """Per field: features, and over its training occurrences the spread of w · x and the mean norm of V; of draws the
    root of the mean square of their norms, and the spread of their mean w. Entries of lists count as x = 1, whatever
    their weights. Fields of numbers as they are, of which the model knows no spread, are the last, by their mean |w|.
    """
    vocabulary, linear = model.vocabulary, model.table.linear_weights.astype(np.float64)
    norms = np.zeros(len(linear))
    norms[: model.table.n_factored] = np.linalg.norm(model.table.factor_weights.astype(np.float64), axis=1)
    found = []
    for field in model.schema.fields:
        own = vocabulary.fields == field.index
        shares = vocabulary.counts[own] / max(vocabulary.counts[own].sum(), 1)
        moments = _moments(model, field, vocabulary.ids[own])
        spread = None if moments is None else _spread(shares, linear[own], *moments)
        record = {
            "field": field.name,
            "kind": field.kind_text,
            "features": int(own.sum()),
            "with_factors": int(own[: vocabulary.n_factored].sum()),
            "spread_of_wx": spread,
            "mean_norm_of_V": float((shares * norms[own]).sum()),
        }
        size = (shares * np.abs(linear[own])).sum() if spread is None else spread
        found.append((spread is None, -size, record))
    return [record for _, _, record in sorted(found, key=lambda each: each[:2])]


def _spread(shares: Floats, w: Floats, means: Floats, variances: Floats) -> float:
    """The standard deviation of w · x over entries, float64[n_features] each: the shares that features have of them,
    their w, mean and variance of their x.
    """
    mean = (shares * w * means).sum()
    return float(np.sqrt((shares * ((w * means - mean) ** 2 + w**2 * variances)).sum()))


def _moments(model: FMModel, field: Field, ids: NDArray[np.uint32]) -> tuple[Floats, Floats] | None:
    """Mean and variance of the numbers x that features of a field come with in training, float64[n_features] each: 1
    and 0 of categories, and of entries of lists, whose weights the model does not know. None where it knows nothing of
    them: of numbers as they are.
    """
    is_scaled, variance = np.zeros(len(ids), np.bool_), 1.0
    if field.kind == "vector":
        if not model.statistics:
            return None
        # Columns of zeros and ones stay as they are, and only their ones are entries.
        is_scaled = np.array([model.statistics[column] != NOTHING_KNOWN for column in field.columns])[ids]
    elif field.kind == "numeric" and not field.bucketed:
        if TRANSFORMS[field.transform].statistics != MOMENTS:
            return None
        is_scaled = ids != hashing.token_index(field.name, hashing.MISSING, model.vocabulary.hash_bits)
        variance = float(model.statistics.get(field.name, NOTHING_KNOWN).stdev > 0)
    return np.where(is_scaled, 0.0, 1.0), np.where(is_scaled, variance, 0.0)


def describe_token(model: FMModel, token: str) -> dict[str, Any]:
    """The model's knowledge of one value, written "column=value" (an empty value is the missing one, and so is the
    name by which it is shown, where no value of that text was seen).

    Of a cross, "site&ad=a.example&7".
    """
    column, equals, text = token.partition("=")
    known = [entry.name for entry in model.schema.fields]
    if not equals or (column not in known and column not in model.schema.columns):
        raise SettingsError(f"{token!r} names no value: write COLUMN=VALUE with a column out of {', '.join(known)}")
    parts = text.split(CROSS_SIGN) if model.tokens.field(column).kind == "cross" else [text]
    unnamed = ["" if part == MISSING else part for part in parts]
    index, row, is_known = _place_of(model, column, unnamed)
    if parts != unnamed:
        with contextlib.suppress(DataError):  # no number is called so
            literal = _place_of(model, column, parts)
            index, row, is_known = literal if literal[2] else (index, row, is_known)
    return {
        "token": token,
        "index": index,
        "seen": int(model.vocabulary.counts[row]) if is_known else 0,
        "treated_as": "itself" if is_known else ("rare" if row >= 0 else "absent"),
        "value": _bucket_of(model, column, row) if is_known else "",
        **_parameters(model, row),
    }


def _place_of(model: FMModel, column: str, parts: Sequence[str]) -> tuple[int, int, bool]:
    """Index and row of a value, of a cross by its parts, and whether the row is its own. DataError where it is none."""
    values = [tuple(parts) if model.tokens.field(column).kind == "cross" else parts[0]]
    index, row = int(model.tokens.ids(column, values)[0]), int(model.parameter_rows(column, values)[0])
    return index, row, row >= 0 and int(model.vocabulary.ids[row]) == index


def _bucket_of(model: FMModel, column: str, row: int) -> str:
    """The numbers that share a row; nothing where it belongs to one value."""
    return TokenNames(model).names.get(row, "") if model.tokens.field(column).kind == "numeric" else ""


def _parameters(model: FMModel, row: int) -> dict[str, Any]:
    owns = 0 <= row < model.table.n_factored
    factors = model.table.factor_weights[row].tolist() if owns else []
    return {
        "w": float(model.table.linear_weights[row]) if row >= 0 else 0.0,
        "norm_of_V": float(np.linalg.norm(factors)) if owns else 0.0,
        "factors": factors,
    }


def top_tokens(model: FMModel, batches: Iterable[pa.RecordBatch], top: int) -> list[dict[str, Any]]:
    """Per field, the values of the greatest weights, either sign: those that occur in the rows, and buckets of numbers.

    batches: rows with the columns of the features.
    """
    names = TokenNames(model)
    for batch in batches:
        names.add(batch)
    found = []
    for entry in model.schema.fields:
        own = names.of_field(entry)
        for row in sorted(own, key=lambda row: (-abs(float(model.table.linear_weights[row])), row))[:top]:
            seen = int(model.vocabulary.counts[row])
            found.append({"field": entry.name, "value": own[row], "seen": seen, **_parameters(model, row)})
    return found
