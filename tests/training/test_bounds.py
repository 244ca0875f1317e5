"""Upper bounds of what a training needs, known before any row is read."""

from __future__ import annotations

from dfm.kernels.tables import Layout
from dfm.settings.tables import ModelSettings
from dfm.training.memory import bounds


def parameter_bytes(goes_on: bool, n_rows: int = 1_000, hash_bits: int = 20) -> int:
    found = bounds(n_rows, 5, 100, ModelSettings(hash_bits=hash_bits), Layout("adagrad", 8), goes_on)
    return found["parameter_bytes_at_most"]


def test_a_job_that_goes_on_has_the_features_of_the_earlier_model_too() -> None:
    """There may be as many as the hash table has places, however few rows there are today."""
    assert parameter_bytes(False, hash_bits=20) == parameter_bytes(False, hash_bits=21)
    assert parameter_bytes(True) == parameter_bytes(False, n_rows=10**9) == parameter_bytes(True, n_rows=10**9)
