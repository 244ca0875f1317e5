"""Settings become the numbers of a round: every knob arrives, in one place."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import dfm
from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import KernelSpec, Step
from dfm.settings.tables import TrainingSettings
from dfm.training.automatic import RowScale, settled
from dfm.training.backends import BACKENDS, NUMBA, backend_here
from dfm.training.steps import StepSchedule, merge_rule, step_of, work_of

SPEC = KernelSpec("logistic", "adam", 2)
ADAM = {"optimizer": "adam", "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-5}
FTRL = {"optimizer": "ftrl", "l1_linear": 0.5, "ftrl_beta": 2.0}


@pytest.mark.parametrize("knobs", [ADAM, FTRL, {"l2_linear": 0.25, "l2_factors": 0.125, "deterministic": True}])
def test_every_knob_of_an_optimizer_reaches_its_step(knobs: dict[str, Any]) -> None:
    step = step_of(settled(TrainingSettings(**knobs), RowScale()))
    for name in {field.name for field in dataclasses.fields(Step)} & knobs.keys():
        assert getattr(step, name) == knobs[name], name


def test_rates_are_scaled_by_replicas_and_factors_have_their_own() -> None:
    training = TrainingSettings(n_replicas=4, learning_rate=0.1, factor_rate_scale=0.5, l2_factors=0.0)
    step = step_of(settled(training, RowScale()), gpu_memory="2GiB")
    assert (step.learning_rate, step.factor_learning_rate) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (step.device_bytes, step.n_threads) == (2**31, 1)
    assert step_of(settled(TrainingSettings(threads_per_replica=3), RowScale())).n_threads == 3


def test_the_rule_that_is_left_to_dfm_follows_from_the_optimizer() -> None:
    assert merge_rule(TrainingSettings()).weights == "weighted"
    assert merge_rule(TrainingSettings(optimizer="sgd")).weights == "mean"
    rule = merge_rule(TrainingSettings(merge="precision", precision=2.0, outer_rate=0.5, outer_momentum=0.25))
    assert (rule.weights, rule.precision, rule.outer_rate, rule.outer_momentum) == ("precision", 2.0, 0.5, 0.25)
    with pytest.raises(SettingsError, match="has none"):
        merge_rule(TrainingSettings(optimizer="adam", merge="weighted"))


def test_a_round_has_the_rate_of_its_standing_and_a_seed_for_each_replica() -> None:
    work = work_of(settled(TrainingSettings(n_replicas=3), RowScale()), "classification", SPEC)
    schedule = StepSchedule("inverse-sqrt", seed=5)
    first, later = schedule.work(work, 0, (0, 8)), schedule.work(work, 7, (3.0, 8), rollbacks=1)
    assert later.step.learning_rate == pytest.approx(first.step.learning_rate / 4)
    assert later.step.seed == first.step.seed + 7 * 3


def test_a_step_is_made_of_settings_in_one_place() -> None:
    """Kernels make one of their own to be compiled with, whose numbers nobody trains with."""
    package, makers = Path(dfm.__file__).parent, []
    for path in sorted(package.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(ast.unparse(call.func) == "Step" for call in calls):
            makers.append(path.relative_to(package).as_posix())
    assert [name for name in makers if not name.startswith("kernels/")] == ["training/steps.py"]


def test_a_backend_is_chosen_by_name_or_by_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = dataclasses.replace(BACKENDS["cupy"], device=lambda: ("", "no driver"))
    monkeypatch.setattr("dfm.training.backends.CUPY", gpu)
    monkeypatch.setitem(BACKENDS, "cupy", gpu)
    plain = KernelSpec("logistic", "adagrad", 2)
    assert backend_here("auto", plain) is NUMBA
    with pytest.raises(ClusterError, match=r'needs a GPU: no driver. Use backend = "numba"'):
        backend_here("cupy", plain)
    with pytest.raises(SettingsError, match="choose one of auto, numba, cupy"):
        backend_here("gpu", plain)
