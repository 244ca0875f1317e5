"""A model with every kind of field and random parameters, and rows for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.encoding import encode_batch
from dfm.data.schema import ResolvedSchema, resolve
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import build_vocabulary, count_features
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema

HASH_BITS = 18
PLAIN = {"categorical": ("site", "zone"), "numeric": ("visits", "price"), "transforms": {"price": "quantile"}}
"""Fields that `rowwise` takes: categories and bucketed numbers."""
EVERY_KIND = {
    "categorical": ("site", "zone"),
    "numeric": ("visits", "price", "age"),
    "transforms": {"price": "quantile", "age": "standardize"},
    "lists": ("tags",),
    "crosses": (("site", "zone"), ("zone", "visits")),
}
STATISTICS = {
    "price": NumberStatistics((1.0, 2.5, 10.0), 4.0, 3.0),
    "age": NumberStatistics((), 40.0, 12.0),
}


def turned(model: FMModel, factor: float = -1.0) -> FMModel:
    """A model that scores otherwise: all parameters of another are multiplied by a factor."""
    arrays = {block.name: model.table[block.name] * np.float32(factor) for block in model.table.layout.blocks}
    return dataclasses.replace(model, table=ParameterTable(model.table.layout, arrays))


def random_table(n_rows: int, seed: int = 0) -> pa.Table:
    """Rows with gaps in every column, and labels 0 and 1 in "label"."""
    rng = np.random.default_rng(seed)

    def gaps(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.1 else value for value in values]

    return pa.table(
        {
            "label": rng.integers(0, 2, n_rows),
            "site": pa.array(gaps([f"site {i}" for i in rng.zipf(1.5, n_rows)]), pa.string()),
            "zone": pa.array(gaps(rng.integers(0, 9, n_rows).tolist()), pa.int64()),
            "visits": pa.array(gaps(rng.integers(-3, 500, n_rows).tolist()), pa.int64()),
            "price": pa.array(gaps(rng.exponential(5.0, n_rows).tolist()), pa.float64()),
            "age": pa.array(gaps(rng.normal(40.0, 12.0, n_rows).tolist()), pa.float64()),
            "tags": pa.array(gaps([[f"t{t}" for t in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(n_rows)])),
        }
    )


def resolved(fields: dict[str, Any]) -> ResolvedSchema:
    """A schema of `random_table`'s columns."""
    return resolve(Schema(**fields), random_table(1).column_names)


def make_model(
    fields: dict[str, Any] | None = None,
    *,
    task: str = "classification",
    n_factors: int = 3,
    min_count: int = 2,
    hash_bits: int = HASH_BITS,
) -> FMModel:
    """Random parameters for the features of 400 random rows."""
    schema, shape = resolved(fields or EVERY_KIND), {"n_factors": n_factors, "hash_bits": hash_bits}
    return model_of_schema(schema, random_table(400), task=task, min_count=min_count, **shape)


def model_of_schema(
    schema: ResolvedSchema,
    table: pa.Table,
    *,
    task: str = "classification",
    n_factors: int = 3,
    min_count: int = 1,
    hash_bits: int = HASH_BITS,
) -> FMModel:
    """Random parameters for the features of some rows."""
    batch = table.combine_chunks().to_batches()[0]
    rows = encode_batch(batch, schema, hash_bits, STATISTICS, None).rows
    counts = count_features(rows.indices, rows.fields, len(schema.fields), hash_bits)
    names = [entry.name for entry in schema.fields]
    vocabulary = build_vocabulary(counts, names, hash_bits, min_count, 4)
    table = initialise(Layout("sgd", n_factors), vocabulary.ids, vocabulary.n_factored, InitialValues(5, 0.4))
    rng = np.random.default_rng(9)
    table.bias[0] = -0.7
    table.linear[:, 0] = rng.normal(0, 0.3, vocabulary.n_features)
    return FMModel(schema, task, vocabulary, table, STATISTICS, {"note": "random"})
