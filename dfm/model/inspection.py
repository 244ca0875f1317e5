"""The contents of a model, in numbers that a person can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfm.data.hashing import hash_category
from dfm.errors import SettingsError
from dfm.model.fm_model import FMModel


def describe_model(model: FMModel) -> dict[str, Any]:
    """The model's summary and one record per field, the most telling field first (JSON-ready)."""
    metadata, vocabulary, loss = model.metadata, model.vocabulary, model.objective.info
    summary = {
        "task": model.task,
        "loss": loss.name if loss.parameter is None else f"{loss.name}({loss.parameter:g})",
        "link": loss.link,
        "family": model.table.layout.family,
        "n_factors": model.table.layout.n_factors,
        "hash_bits": vocabulary.hash_bits,
        "features": vocabulary.n_features,
        "features_with_factors": vocabulary.n_factored,
        "bias": float(model.table.bias_value),
        "dfm_version": metadata.get("dfm_version", ""),
        "data_fingerprint": metadata.get("data_fingerprint", ""),
        "parameters_sha256": model.parameters_sha256(),
        **{f"validation_{k}": v for k, v in metadata.get("validation", {}).items() if k != "calibration_bins"},
        **{f"rows_{key}": value for key, value in metadata.get("rows", {}).items() if key != "reasons"},
    }
    return {"summary": summary, "fields": _fields(model), "settings": metadata.get("settings", {})}


def _fields(model: FMModel) -> list[dict[str, Any]]:
    """Per field: features, and over its training occurrences the spread of w and the mean norm of V."""
    vocabulary, linear = model.vocabulary, model.table.linear_weights.astype(np.float64)
    norms = np.zeros(len(linear))
    norms[: model.table.n_factored] = np.linalg.norm(model.table.factor_weights.astype(np.float64), axis=1)
    records = []
    for field in model.schema.fields:
        own = vocabulary.fields == field.index
        counts = vocabulary.counts[own].astype(np.float64)
        total = max(counts.sum(), 1.0)
        mean = (counts * linear[own]).sum() / total
        spread = float(np.sqrt((counts * (linear[own] - mean) ** 2).sum() / total))
        records.append(
            {
                "field": field.name,
                "kind": field.transform or field.kind,
                "features": int(own.sum()),
                "with_factors": int(own[: vocabulary.n_factored].sum()),
                "spread_of_w": spread,
                "mean_norm_of_V": float((counts * norms[own]).sum() / total),
            }
        )
    return sorted(records, key=lambda record: -record["spread_of_w"])


def describe_token(model: FMModel, token: str) -> dict[str, Any]:
    """The model's knowledge of one category, written "column=value" (an empty value is the missing one)."""
    import pyarrow as pa

    column, equals, value = token.partition("=")
    fields = {field.name: field for field in model.schema.fields if field.kind in ("categorical", "list")}
    if not equals or column not in fields:
        raise SettingsError(f"{token!r} names no category: write COLUMN=VALUE with a column out of {', '.join(fields)}")
    bits = model.vocabulary.hash_bits
    index = int(hash_category(pa.array([value]), column, bits, model.schema.numbers)[0])
    rows = np.flatnonzero(model.vocabulary.ids == index)
    known = bool(len(rows))
    row = int(rows[0]) if known else int(model.vocabulary.rare[fields[column].index])
    owns = 0 <= row < model.table.n_factored
    return {
        "token": token,
        "index": index,
        "seen": int(model.vocabulary.counts[row]) if known else 0,
        "treated_as": "itself" if known else ("rare" if row >= 0 else "absent"),
        "w": float(model.table.linear_weights[row]) if row >= 0 else 0.0,
        "norm_of_V": float(np.linalg.norm(model.table.factor_weights[row])) if owns else 0.0,
    }
