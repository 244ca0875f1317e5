"""Draws from the posterior of a machine, kept together: what a mean over them, and its spread, are made of.

V of all draws lies in one table, [V_1 … V_T] / sqrt(T), beside the mean of w: that table is the machine whose score is
the mean of theirs (`dfm.kernels.mean`). A `Draws` adds what differs from draw to draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.partition import SparsePartition
from dfm.data.units import LabelUnit
from dfm.kernels.mean import mean_table
from dfm.kernels.tables import ParameterTable
from dfm.solvers.chance import log_phi
from dfm.storage.arrays import read_only

Doubles = NDArray[np.float64]
_CHUNK = 1 << 14
"""Rows that are scored by all draws at a time: 13 MB at 100 draws."""


@dataclass(frozen=True, eq=False)
class Draws:
    """bias float32[T] and linear float32[n_features, T] of T draws; noise float32[T]: the deviation of labels around
    their scores, 0 where the labels have none (of classification, and of least squares).
    """

    bias: NDArray[np.float32]
    linear: NDArray[np.float32]
    noise: NDArray[np.float32]

    @property
    def number(self) -> int:
        """Number of draws."""
        return len(self.bias)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Its arrays by name, as a model stores them."""
        return {f"draws_{entry.name}": getattr(self, entry.name) for entry in dataclasses.fields(self)}

    @classmethod
    def shapes(cls, number: int, n_features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of its arrays by name."""
        return {"draws_bias": (number,), "draws_linear": (n_features, number), "draws_noise": (number,)}

    def in_own_unit(self, unit: LabelUnit) -> Draws:
        """The same, of a model that predicts in the labels' own unit and not in that of the training."""
        if unit == LabelUnit():
            return self
        scale = np.float32(unit.scale)
        bias = (self.bias.astype(np.float64) * unit.scale + unit.mean).astype(np.float32)
        return Draws(bias, self.linear * scale, self.noise * scale)


def put_together(tables: Sequence[ParameterTable], noises: Sequence[float]) -> tuple[ParameterTable, Draws]:
    """The machine of the mean score of some draws, and what tells them apart."""
    bias = np.array([table.bias_value for table in tables], np.float32)
    linear = np.stack([table.linear_weights for table in tables], axis=1)
    return mean_table(tables), Draws(bias, np.ascontiguousarray(linear), np.array(noises, np.float32))


def scores_of_draws(rows: SparsePartition, table: ParameterTable, draws: Draws) -> Iterator[tuple[slice, Doubles]]:
    """Scores by each draw, float64[n, T], of some rows after the other."""
    source = read_only(rows.indptr), read_only(rows.indices), read_only(rows.values), rows.n_implicit
    width = table.layout.n_factors // draws.number
    for start in range(0, rows.n_rows, _CHUNK):
        here = slice(start, min(start + _CHUNK, rows.n_rows))
        found = np.empty((here.stop - start, draws.number))
        parameters = read_only(draws.bias), read_only(draws.linear), read_only(table.factors)
        _score(source, start, parameters, width, found)
        yield here, found


@compiled
def _score(source, start, parameters, width, found):  # type: ignore[no-untyped-def]
    """Writes the scores of rows from `start` on by each draw, float64[n, T]; a vector has `width` numbers a draw."""
    indptr, indices, values, n_implicit = source
    bias, linear, factors = parameters
    n_draws, n_columns, skipped = bias.size, bias.size * width, indptr[n_implicit]
    sums, squares = np.empty(n_columns, np.float32), np.empty(n_columns, np.float32)
    for position in range(found.shape[0]):
        row = start + position
        sums[:] = 0
        squares[:] = 0
        for draw in range(n_draws):
            found[position, draw] = bias[draw]
        for i in range(indptr[row], indptr[row + 1]):
            feature = np.intp(indices[i])
            x = values[i - skipped] if row >= n_implicit else np.float32(1)
            for draw in range(n_draws):
                found[position, draw] += x * linear[feature, draw]
            if feature < factors.shape[0]:
                for column in range(n_columns):
                    part = x * factors[feature, column]
                    sums[column] += part
                    squares[column] += part * part
        for draw in range(n_draws):
            pairs = 0.0
            for column in range(draw * width, (draw + 1) * width):
                pairs += np.float64(sums[column]) ** 2 - np.float64(squares[column])
            found[position, draw] += 0.5 * n_draws * pairs


@compiled
def probabilities(scores, found):  # type: ignore[no-untyped-def]
    """Adds Φ(s) and Φ(−s) of scores float64[n, T] over the draws to found float64[2, n], in place."""
    for row in range(scores.shape[0]):
        for draw in range(scores.shape[1]):
            found[0, row] += math.exp(log_phi(scores[row, draw]))
            found[1, row] += math.exp(log_phi(-scores[row, draw]))


def logits(found: Doubles) -> NDArray[np.float32]:
    """The logit of the mean probability, float32[n], of sums of Φ(s) and Φ(−s), float64[2, n]."""
    least = np.finfo(np.float64).tiny
    return (np.log(np.maximum(found[0], least)) - np.log(np.maximum(found[1], least))).astype(np.float32)


def mean_scores(rows: SparsePartition, table: ParameterTable, draws: Draws, task: str) -> NDArray[np.float32]:
    """Scores of a model of draws, float32[n_rows]: the mean score or, of classification, the logit of the mean
    probability.
    """
    result = np.empty(rows.n_rows, np.float32)
    for here, scores in scores_of_draws(rows, table, draws):
        if task == "classification":
            sums = np.zeros((2, len(scores)))
            probabilities(scores, sums)
            result[here] = logits(sums)
        else:
            result[here] = scores.mean(axis=1)
    return result


def intervals(rows: SparsePartition, table: ParameterTable, draws: Draws, coverage: float) -> NDArray[np.float32]:
    """Bounds, float32[n_rows, 2], that hold a new label with this probability, each tail with half of the rest.

    A new label is a mixture of normal numbers, one a draw, whose quantiles are found by bisection.
    """
    result = np.empty((rows.n_rows, 2), np.float32)
    for here, scores in scores_of_draws(rows, table, draws):
        noise = draws.noise.astype(np.float64)
        for side, level in enumerate(((1 - coverage) / 2, (1 + coverage) / 2)):
            result[here, side] = _quantiles(scores, noise, level)
    return result


@compiled
def _quantiles(means, deviations, level):  # type: ignore[no-untyped-def]
    """Quantiles float64[n] of mixtures of normal numbers with means float64[n, T] and deviations float64[T]."""
    found = np.empty(means.shape[0])
    reach = 9.0 * deviations.max() + 1e-12
    for row in range(means.shape[0]):
        low, high = means[row].min() - reach, means[row].max() + reach
        for _ in range(60):
            middle, total = 0.5 * (low + high), 0.0
            for draw in range(deviations.size):
                away = middle - means[row, draw]
                if deviations[draw] > 0.0:
                    total += 0.5 * math.erfc(-away / deviations[draw] * math.sqrt(0.5))
                else:
                    total += 1.0 if away >= 0.0 else 0.0
            if total < level * deviations.size:
                low = middle
            else:
                high = middle
        found[row] = 0.5 * (low + high)
    return found
