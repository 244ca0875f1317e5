"""The mean of several models as one: its score is the mean of theirs, and it is of their family.

    w = mean_s w_s        V = [V_1 … V_S] / sqrt S

for an inner product of such vectors is the mean of the single ones; where d numbers meet in a product, the root is the
d-th. That is exact for families whose vectors meet number by number, and vector by vector where a feature has several.
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
            parts = np.stack([_by_vector(each, layout) for each in numbers], axis=2)
            scales = _scales(layout, 1 / n_models).reshape(-1, 1, 1)
            result.values(block)[...] = (parts * scales).reshape(len(parts), block.width)
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
            shape = len(numbers), len(layout.degrees), n_models, layout.n_factors
            parts = _by_vector(numbers, layout).reshape(shape)
            own = parts[:, :, number] * _scales(layout, n_models).reshape(-1, 1)
            numbers = own.reshape(len(numbers), block.width)
        result.values(block)[...] = numbers
    return result


def _scales(layout: Layout, of_score: float) -> NDArray[np.float32]:
    """Factors for each vector of a feature, with which its part of the score becomes `of_score` times as much."""
    return np.array([of_score ** (1 / degree) for degree in layout.degrees], np.float32)


def _by_vector(numbers: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """float32[n_rows, vectors of a feature, numbers of one]."""
    n_vectors = len(layout.degrees)
    return numbers.reshape(len(numbers), n_vectors, numbers.shape[1] // n_vectors if numbers.size else 0)
