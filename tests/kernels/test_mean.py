"""The mean of models as one model: its scores are the mean of theirs, and each can be taken out of it again."""

from __future__ import annotations

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.cpu.backend import compile_scores
from dfm.kernels.families.registry import FAMILIES, family_of
from dfm.kernels.mean import mean_table, part_of_mean
from dfm.kernels.tables import ParameterTable
from dfm.settings.tables import ModelSettings
from tests.support.kernel_cases import make_rows, make_table

WHOLE = [name for name in FAMILIES if not make_table(n_factors=4, family=name).layout.own]
"""Families of which a model can be the mean of others."""


def models_of(family: str, n_factors: int) -> list[ParameterTable]:
    """Three models of the same features."""
    rng = np.random.default_rng(3)
    found = [make_table(n_factors=n_factors, family=family).without_state() for _ in range(3)]
    for table in found:
        for block in table.layout.blocks:
            table.values(block)[...] = rng.normal(0, 0.15, table.values(block).shape)
    return found


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("n_factors", [4, 5])
def test_its_scores_are_the_mean_of_the_scores(family: str, n_factors: int) -> None:
    rows, models = make_rows(), models_of(family, n_factors)
    single = [compile_scores(models[0].layout)(rows, table) for table in models]
    mean = mean_table(models)
    assert mean.layout.n_factors == 3 * n_factors
    np.testing.assert_allclose(compile_scores(mean.layout)(rows, mean), np.mean(single, axis=0), rtol=1e-6, atol=1e-6)
    assert np.ptp(single, axis=0).max() > 0.05, "the models are not the same"


@pytest.mark.parametrize("family", WHOLE)
def test_each_model_comes_out_of_it_again_but_for_the_linear_weights(family: str) -> None:
    models = models_of(family, 5)
    mean = mean_table(models)
    for number, table in enumerate(models):
        part = part_of_mean(mean, number, 3)
        np.testing.assert_allclose(part.factor_weights, table.factor_weights, rtol=1e-6)
        np.testing.assert_allclose(
            part.linear_weights, np.mean([m.linear_weights for m in models], axis=0, dtype=float), rtol=1e-6
        )


def test_linear_models_have_a_mean_too() -> None:
    models = models_of("fm", 0)
    mean = mean_table(models)
    assert mean.n_factored == models[0].n_factored
    weights = np.mean([m.linear_weights for m in models], axis=0, dtype=float)
    np.testing.assert_allclose(mean.linear_weights, weights, rtol=1e-6)
    assert part_of_mean(mean, 1, 3).layout.n_factors == 0


def test_what_no_model_can_hold_is_refused_at_the_door() -> None:
    for family in FAMILIES:
        if family not in WHOLE:
            own = family_of(family).blocks(4)[-1].name
            with pytest.raises(SettingsError, match=f'model.family = "{family}": each model learns {own} of its own'):
                ModelSettings(family=family, n_models=2)
    with pytest.raises(SettingsError, match="make vectors of 320 numbers, and 256 is the most"):
        ModelSettings(n_factors=16, n_models=20)
