"""Upper bounds of what a training needs, known before any row is read."""

from __future__ import annotations

from dfm.kernels.tables import Layout
from dfm.settings.tables import ModelSettings
from dfm.training.memory import bounds


def parameter_bytes(n_rows: int, earlier_features: int = 0, hash_bits: int = 20) -> int:
    found = bounds(n_rows, 5, 100, ModelSettings(hash_bits=hash_bits), Layout("adagrad", 8), earlier_features)
    return found["parameter_bytes_at_most"]


def test_a_job_that_goes_on_has_the_features_of_the_earlier_model_too() -> None:
    assert parameter_bytes(1_000) == parameter_bytes(1_000, hash_bits=21)
    assert parameter_bytes(1_000, 5_000) == parameter_bytes(2_000)
    assert parameter_bytes(1_000, 2**20) == parameter_bytes(10**9) == parameter_bytes(10**9, 2**20)
