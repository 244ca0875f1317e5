"""Parameters from one unit of the label to another: what is trained on labels of deviation 1 predicts in their own."""

from __future__ import annotations

import numpy as np

from dfm.data.units import LabelUnit
from dfm.kernels.tables import ParameterTable, allocate


def in_own_unit(trained: ParameterTable, unit: LabelUnit) -> ParameterTable:
    """The parameters, without optimizer state, of a model that predicts in the labels' own unit.

    A score s of the training becomes s * scale + mean, which pairs of factors take as sqrt(scale) each.
    """
    table = allocate(trained.layout.stateless, trained.n_features, trained.n_factored)
    table.bias[0] = float(trained.bias_value) * unit.scale + unit.mean
    table.linear[:, 0] = trained.linear_weights * np.float32(unit.scale)
    table.factors[:, : trained.layout.n_factors] = trained.factor_weights * np.float32(unit.scale**0.5)
    return table
