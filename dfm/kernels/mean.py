"""The mean of several models as one: its score is the mean of theirs, and it is of their family.

    w = mean_s w_s        V = [V_1 … V_S] / sqrt S

for an inner product of such vectors is the mean of the single ones. That is exact for families whose vectors meet in
plain inner products, group by group where they have groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfm.kernels.tables import Layout, ParameterTable, allocate


def mean_layout(layout: Layout, n_models: int) -> Layout:
    """The layout of the mean of so many models, without optimizer state."""
    return dataclasses.replace(layout.stateless, n_factors=n_models * layout.n_factors)


def mean_table(tables: Sequence[ParameterTable]) -> ParameterTable:
    """The table of the mean of some models of the same features, without optimizer state."""
    first, n_models = tables[0], len(tables)
    layout = mean_layout(first.layout, n_models)
    result = allocate(layout, first.n_features, first.n_factored, first.n_fields)
    for block in layout.blocks:
        single = first.layout.block(block.name)
        numbers = [table.values(single) for table in tables]
        if block.is_vector:
            parts = np.stack([_by_group(each, layout.n_groups) for each in numbers], axis=2)
            result.values(block)[...] = (parts * np.float32(n_models**-0.5)).reshape(-1, block.width)
        else:
            result.values(block)[...] = np.mean(numbers, axis=0, dtype=np.float64)
    return result


def part_of_mean(table: ParameterTable, number: int, n_models: int) -> ParameterTable:
    """The vectors of model `number` of those that a mean was made of, with the linear weights of the mean."""
    layout = dataclasses.replace(table.layout.stateless, n_factors=table.layout.n_factors // n_models)
    result = allocate(layout, table.n_features, table.n_factored, table.n_fields)
    for block in layout.blocks:
        numbers = table.values(table.layout.block(block.name))
        if block.is_vector:
            parts = _by_group(numbers, layout.n_groups).reshape(-1, layout.n_groups, n_models, layout.n_factors)
            numbers = (parts[:, :, number] * np.float32(n_models**0.5)).reshape(-1, block.width)
        result.values(block)[...] = numbers
    return result


def _by_group(vectors: NDArray[np.float32], n_groups: int) -> NDArray[np.float32]:
    """float32[n_rows, n_groups, numbers of a group]."""
    return vectors.reshape(len(vectors), n_groups, vectors.shape[1] // n_groups if vectors.size else 0)
