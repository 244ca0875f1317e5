"""What all tests share: how Hypothesis draws its examples."""

from __future__ import annotations

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
