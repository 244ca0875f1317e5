"""What all tests share: how Hypothesis draws its examples, and what plain Python warns of where kernels do not."""

from __future__ import annotations

import gc
import os

import dask
import numba
import pytest
from hypothesis import HealthCheck, settings

from tests.support.crashes import tell_of_crashes

# The same examples on every run and every machine, and no clock: an example that compiles a kernel takes seconds.
settings.register_profile(
    "dfm",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dfm")

# Clusters inside the process of the tests, and those of processes that it starts: with Python 3.11 the profiler of a
# worker may crash its process (see `dfm.distributed.cluster.connect`), which here is that of all tests.
os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
dask.config.set({"distributed.worker.profile.enabled": False})


def pytest_configure(config: pytest.Config) -> None:
    """Hashes overflow 64 bits on purpose; without compilation (NUMBA_DISABLE_JIT=1, for coverage) NumPy warns of it."""
    tell_of_crashes(config)
    if numba.config.DISABLE_JIT:
        config.addinivalue_line("filterwarnings", "ignore:overflow encountered:RuntimeWarning")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file of tests left unreachable is found at its end. What stays is not searched again (`gc.unfreeze` lets
    it be): a process that compiles hundreds of kernels holds millions of objects.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
