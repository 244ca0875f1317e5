"""Numeric matrices as rows of a factorization machine: column j is feature j with value x_j; nothing is hashed.

Zeros take no part in a row, so a sparse matrix costs what it stores. Columns of a dense matrix can be brought to mean
0 and deviation 1 first: one step size then suits all of them, whatever their units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.encoding import dense_entries
from dfm.data.hashed_rows import HashedRows
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import NumberStatistics, beyond_rounding
from dfm.data.vocabulary import Vocabulary
from dfm.errors import DataError

VECTOR = "vector"
"""Kind of the one field of a matrix: its columns in order, each a feature of its own."""
_LEAST_BITS = 10
_NO_FLOATS = np.zeros(0, np.float32)
_NO_FIELDS = np.zeros(0, np.uint16)


@dataclass(frozen=True, eq=False)
class ColumnMoments:
    """Weight, means and sums of squared deviations of columns, and which hold zeros and ones only; they add up."""

    weight: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    is_flag: NDArray[np.bool_]

    @classmethod
    def of(cls, matrix: NDArray[Any], weights: NDArray[np.float32]) -> ColumnMoments:
        """The moments of a matrix [n_rows, n_columns]; weights float32[n_rows], empty where all rows count the same."""
        values = np.asarray(matrix, np.float64)
        if weights.size:
            values, weights = values[weights > 0], weights[weights > 0]
        masses = weights.astype(np.float64) if weights.size else np.ones(len(values))
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(masses.sum())
            mean = masses @ values / (total or 1.0)
            squares = masses @ (values - mean) ** 2
        return cls(total, mean, squares, ((values == 0) | (values == 1)).all(axis=0))

    def __add__(self, other: ColumnMoments) -> ColumnMoments:
        """The moments of the rows of both (Chan, Golub and LeVeque 1979)."""
        weight = self.weight + other.weight
        share = other.weight / weight if weight else 0.0
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta**2 * self.weight * share
        return ColumnMoments(weight, self.mean + delta * share, squares, self.is_flag & other.is_flag)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Columns are seen as (x − mean) / scale; float64[n_columns] each, in the columns' units."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def from_moments(cls, moments: ColumnMoments) -> Scaling:
        """Mean and deviation of every column.

        Columns of zeros and ones stay as they are: they say yes or no, and have no unit. Columns of one value vanish.
        """
        deviation = beyond_rounding(np.sqrt(moments.squares / (moments.weight or 1.0)), moments.mean)
        mean = np.where(moments.is_flag, 0.0, moments.mean)
        scale = np.where((deviation > 0) & ~moments.is_flag, deviation, 1.0)
        # A scale of 1 belongs to columns that stay as they are; this one gives numbers of float32 the same bits.
        is_standard = (moments.mean == 0) & (deviation == 1)
        return cls(mean, np.where(is_standard, np.nextafter(1.0, 2.0), scale))

    def apply(self, matrix: NDArray[Any]) -> NDArray[np.float64]:
        """The columns as the model sees them, float64[n_rows, n_columns]."""
        return (np.asarray(matrix, np.float64) - self.mean) / self.scale

    def statistics(self, names: Sequence[str]) -> dict[str, NumberStatistics]:
        """The same numbers by column name, as a model keeps them."""
        pairs = zip(names, self.mean.tolist(), self.scale.tolist(), strict=True)
        return {name: NumberStatistics((), mean, scale) for name, mean, scale in pairs}

    @classmethod
    def from_statistics(cls, statistics: Mapping[str, NumberStatistics], names: Sequence[str]) -> Scaling | None:
        """The moments that `statistics` was given; None where nothing is scaled."""
        if not statistics:
            return None
        known = [statistics[name] for name in names]
        return cls(np.array([one.mean for one in known]), np.array([one.stdev for one in known]))


def vector_schema(names: Sequence[str], label: str = "label") -> ResolvedSchema:
    """The schema of a matrix whose columns have these names."""
    return ResolvedSchema(label, (), "", "", 32, (Field(VECTOR, VECTOR, tuple(names), "", 0),))


def is_vector(schema: ResolvedSchema) -> bool:
    """Whether the model takes numeric matrices."""
    return len(schema.fields) == 1 and schema.fields[0].kind == VECTOR


def column_names(n_columns: int) -> tuple[str, ...]:
    """Names for the columns of a matrix that has none: x0, x1 and so on."""
    return tuple(f"x{j}" for j in range(n_columns))


def vector_vocabulary(n_columns: int, counts: NDArray[np.int64]) -> Vocabulary:
    """Row j of the parameter table is column j, and each owns factors; counts: rows in which it is not zero."""
    bits = max(_LEAST_BITS, (n_columns - 1).bit_length())
    return Vocabulary(
        np.arange(n_columns, dtype=np.uint32),
        counts,
        np.zeros(n_columns, np.uint16),
        np.full(1, -1, np.int64),
        n_columns,
        bits,
    )


def is_sparse(matrix: Any) -> bool:
    """Whether it is a matrix or array of scipy.sparse, without importing SciPy."""
    return hasattr(matrix, "tocsr") and hasattr(matrix, "nnz")


def matrix_rows(matrix: Any, scaling: Scaling | None = None) -> HashedRows:
    """The rows of a NumPy array or scipy.sparse matrix [n_rows, n_columns]; labels are 0, nobody has a weight.

    DataError where a number is not finite, or too large for float32.
    """
    if is_sparse(matrix):
        indptr, columns, values = _sparse_entries(matrix, scaling)
    else:
        indptr, columns, values = _dense_entries(np.asarray(matrix), scaling)
    if not np.isfinite(values).all():
        raise DataError(
            "the matrix holds NaN, infinity, or a number beyond float32 (3e38): fill or scale these columns first"
        )
    if (values == 1).all():
        values = _NO_FLOATS
    n_rows = len(indptr) - 1
    return HashedRows(indptr, columns, _NO_FIELDS, values, np.zeros(n_rows, np.float32), _NO_FLOATS)


def _sparse_entries(matrix: Any, scaling: Scaling | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if scaling is not None and scaling.mean.any():
        raise DataError(
            "a sparse matrix cannot be moved to mean 0 and stay sparse; the model standardizes: pass a dense array"
        )
    csr = matrix.tocsr()
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    values = csr.data
    if scaling is not None:
        values = values / scaling.scale[csr.indices]
    with np.errstate(over="ignore"):
        return csr.indptr.astype(np.int64), csr.indices.astype(np.uint32), values.astype(np.float32)


def _dense_entries(matrix: NDArray[Any], scaling: Scaling | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    with np.errstate(over="ignore", invalid="ignore"):
        return dense_entries((scaling.apply(matrix) if scaling is not None else matrix).astype(np.float32))
