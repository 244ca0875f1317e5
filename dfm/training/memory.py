"""Memory that a worker needs for a plan, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dfm.kernels.blocks import padded_lanes
from dfm.kernels.tables import Layout
from dfm.settings.tables import MCMC, SGD, ModelSettings
from dfm.training.inputs import Inputs, plan_event
from dfm.training.order import Order

MIB, GIB = 1 << 20, 1 << 30
_PROCESS = 512 * MIB
"""A worker before any row: Python, Dask, Arrow, compiled kernels, and the nanny beside it."""
_TASK_ROWS = 1 << 18
_DECODED_CELL = 32
"""Bytes of a cell while its shard is read: Arrow values, hashes, indices and their dealt copies."""


def plan_of(order: Order, inputs: Inputs, earlier_features: int = 0) -> dict[str, Any]:
    """A training as far as it is known before any row is read, ready for JSON. earlier_features: of the model that it
    goes on from.
    """
    job, plan, schema = order.job, inputs.plan, inputs.schema
    layout = order.of_fields(schema).work.layout
    longest = plan.longest_round if inputs.course.n_epochs > 1 else 1
    rows_per_round = min(plan.rows_of(0), -(-plan.rows_of(0) // plan.n_slices) * longest)
    return {
        "job": job.to_dict(),
        **{key: value for key, value in plan_event(inputs).items() if key != "event"},
        "columns": {field.name: field.kind_text for field in schema.fields},
        "parquet_bytes": sum(shard.size for shard in inputs.train),
        "largest_shard_rows": max(shard.n_rows for shard in inputs.train),
        "round_rows_per_replica": rows_per_round,
        **bounds(inputs.n_rows, len(schema.fields), rows_per_round, job.model, layout, earlier_features),
    }


def bounds(
    n_rows: int, n_fields: int, rows_per_round: int, model: ModelSettings, layout: Layout, earlier_features: int = 0
) -> dict[str, int]:
    """Upper bounds in bytes, by their names in a plan: no more features than entries, and those of the model that
    training goes on from, nor than 2^hash_bits.

    Parameters are those of all models that are trained beside each other.
    """
    shared = 4 * layout.n_numbers(0, 0, n_fields)
    per_feature = 4 * layout.n_numbers(1, 1, n_fields) - shared
    most_features = min(2**model.hash_bits, n_rows * n_fields + earlier_features)
    most_touched = min(most_features, rows_per_round * n_fields)
    return {
        "partition_cache_bytes": n_rows * (4 * n_fields + 12 + (2 * layout.n_groups if layout.groups else 0)),
        "parameter_bytes_at_most": model.n_models * (most_features * per_feature + shared),
        "round_bytes_per_replica_at_most": 2 * (most_touched * (per_feature + 4) + shared),
    }


def worker_memory(plan: Mapping[str, Any], threads: int, workers: int = 1) -> int:
    """Bytes of a worker process: an upper bound, for the plan's counts of features are.

    Per task that runs at a time: a shard being read, a replica's partitions being built, or three copies of what a
    round touches (before, after, difference). Beside them two copies of the table. Mapped partitions are page cache,
    which the system takes back. An exact solver keeps more: its rows by visit, the workers' share of them, and draws.
    """
    fields = len(plan["columns"])
    reading = _TASK_ROWS * fields * _DECODED_CELL
    building = 2 * plan["rows_per_replica"] * (4 * fields + 12)
    training = 3 * plan["round_bytes_per_replica_at_most"] // 2
    tables = 2 * plan["parameter_bytes_at_most"]
    kept = tables + _kept_by_exact(plan, workers)
    return rounded(1.25 * (_PROCESS + threads * max(reading, building, training) + kept), 256 * MIB)


def _kept_by_exact(plan: Mapping[str, Any], workers: int) -> float:
    """Bytes that an exact solver keeps on a worker between its tasks; 0 for steps down gradients.

    One worker puts all draws together. Of the rows it has its share, and that of a neighbour that was lost.
    """
    training = plan.get("job", {}).get("training", {})
    if training.get("solver", SGD) == SGD:
        return 0.0
    draws = training["draws"] + 1 if training["solver"] == MCMC else 1
    width = 4 * len(plan["columns"]) + 4 * (1 + padded_lanes(plan["job"]["model"]["n_factors"]))
    return 2 * plan["rows"] / max(workers, 2) * width + draws * float(plan["parameter_bytes_at_most"])


def rounded(value: float, step: int) -> int:
    """The next multiple of a step."""
    return math.ceil(value / step) * step
