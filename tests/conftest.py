"""What all tests share: how Hypothesis draws its examples, and what plain Python warns of where kernels do not."""

from __future__ import annotations

import numba
import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run and every machine, and no clock: an example that compiles a kernel takes seconds.
settings.register_profile(
    "dfm",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dfm")


def pytest_configure(config: pytest.Config) -> None:
    """Hashes overflow 64 bits on purpose; without compilation (NUMBA_DISABLE_JIT=1, for coverage) NumPy warns of it."""
    if numba.config.DISABLE_JIT:
        config.addinivalue_line("filterwarnings", "ignore:overflow encountered:RuntimeWarning")
