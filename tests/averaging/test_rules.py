"""Rules of averaging as numbers: what is refused and why, how rates and the number of averages follow the replicas."""

from __future__ import annotations

import pytest

from dfm.averaging.rules import MergeRule, automatic_averages, scaled_rate
from dfm.errors import SettingsError


@pytest.mark.parametrize(("rate_scaling", "factor"), [("none", 1.0), ("sqrt", 4.0), ("linear", 16.0)])
def test_the_local_rate_grows_with_the_replicas(rate_scaling, factor):
    assert scaled_rate(0.05, rate_scaling, 16) == 0.05 * factor
    assert scaled_rate(0.05, rate_scaling, 1) == 0.05


def test_more_replicas_are_averaged_more_often_and_small_data_less():
    assert automatic_averages(10**6, 1) == 1
    assert [automatic_averages(10**6, n_replicas) for n_replicas in (4, 8, 64, 512)] == [8, 12, 32, 19]
    assert [automatic_averages(10**9, n_replicas) for n_replicas in (8, 512)] == [12, 32]
    assert automatic_averages(1600, 8) == 2
    assert automatic_averages(5, 8) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MergeRule("sum"), "choose one of mean"),
        (lambda: MergeRule(accumulators="local"), "resumed"),
        (lambda: MergeRule(outer_rate=4.0), "diverges"),
        (lambda: MergeRule(outer_rate=0.7, outer_momentum=0.9), "diverges"),
        (lambda: MergeRule(outer_momentum=1.0), r"\[0, 1\)"),
        (lambda: MergeRule(precision=0.0), "above 0"),
        (lambda: MergeRule(outer_rate=float("nan")), "above 0"),
        (lambda: MergeRule("weighted").check_optimizer("sgd"), "accumulators"),
        (lambda: MergeRule("weighted").check_optimizer("adam"), "accumulators"),
        (lambda: MergeRule("mean", "vw").check_optimizer("adam"), "either sign"),
        (lambda: MergeRule("mean", "sum").check_optimizer("adam"), "either sign"),
        (lambda: MergeRule("precision", precision=30.0).check_replicas(32), "precision = 6.25 or less"),
        (lambda: scaled_rate(0.1, "cube", 8), "none, sqrt, linear"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(make, reason):
    with pytest.raises(SettingsError, match=reason):
        make()


def test_a_precision_that_converged_is_legal():
    MergeRule("precision", precision=10.0).check_replicas(8)
    MergeRule("weighted", precision=1000.0).check_replicas(64)
