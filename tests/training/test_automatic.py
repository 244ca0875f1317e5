"""What "auto" means: numbers from the rows and the loss, and how long a training lasts."""

from __future__ import annotations

import pytest

from dfm.data.hashed_rows import EntrySums
from dfm.errors import SettingsError
from dfm.kernels.losses import DEFAULT_LOSSES, LOSSES
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.model.objective import Objective
from dfm.settings.job import Job
from dfm.settings.tables import ModelSettings, TrainingSettings
from dfm.training.automatic import CANDIDATES, Course, RowScale, initial_stdev, settled
from dfm.training.inputs import automatic_held_out


@pytest.mark.parametrize(
    ("task", "loss", "rate"),
    [
        ("classification", "logistic", 1.6),
        ("classification", "hinge", 1.6),
        ("regression", "squared", 0.4),
        ("regression", "huber", 0.4),
        ("regression", "quantile", 0.2),
        ("regression", "poisson", 0.4),
    ],
)
def test_the_step_size_is_that_of_a_row_over_its_squares_and_the_steepness(task: str, loss: str, rate: float) -> None:
    scale = RowScale.of(EntrySums(10, 390, 390.0), Objective.of(task, loss))
    found = settled(TrainingSettings(), scale)
    assert found.learning_rate == pytest.approx(rate / 39)
    assert (found.factor_rate_scale, found.l2_factors, found.l2_linear) == (0.4, 0.01, 0.005)


def test_squares_below_one_count_as_one() -> None:
    assert RowScale.of(EntrySums(10, 10, 5.0), Objective.of("classification")).squares == 1.0
    assert RowScale.of(EntrySums(), Objective.of("classification")).squares == 1.0


def test_small_values_are_penalised_less_and_large_ones_as_categories_are() -> None:
    words, numbers = EntrySums(10, 200, 10.0), EntrySums(10, 20, 9_000.0)
    for sums, expected in ((words, 0.00025), (numbers, 0.005)):
        scale = RowScale.of(sums, Objective.of("classification"))
        assert settled(TrainingSettings(), scale).l2_linear == pytest.approx(expected)
        assert settled(TrainingSettings(l2_linear=0.02), scale).l2_linear == 0.02


def test_every_loss_says_how_steep_it_is() -> None:
    steep = {"squared", "huber", "squared-hinge", "poisson"}
    assert {name for name, loss in LOSSES.items() if loss.steepness == 4.0} == steep
    assert [name for name, loss in LOSSES.items() if loss.steepness == 8.0] == ["quantile"]
    assert LOSSES[DEFAULT_LOSSES["classification"]].steepness == 1.0


def test_an_optimizer_that_measures_its_own_scale_keeps_its_rate() -> None:
    for name, optimizer in OPTIMIZERS.items():
        rate = settled(TrainingSettings(optimizer=name), RowScale(squares=10.0)).learning_rate
        assert rate == pytest.approx(optimizer.row_rate / 10 if optimizer.row_rate else optimizer.learning_rate), name
    assert [name for name, each in OPTIMIZERS.items() if not each.row_rate] == ["adam", "rmsprop"]


def test_a_number_that_is_given_stays_whatever_the_candidate_has() -> None:
    given = TrainingSettings(factor_rate_scale=1.0, l2_factors=0.2)
    for candidate in CANDIDATES.values():
        found = settled(given, RowScale(), candidate)
        assert (found.learning_rate, found.factor_rate_scale, found.l2_factors) == (1.6 * candidate.rate, 1.0, 0.2)


def test_factors_start_smaller_in_long_rows() -> None:
    assert initial_stdev(ModelSettings(), RowScale(39.0)) == pytest.approx(0.0032, rel=0.01)
    assert initial_stdev(ModelSettings(init_stdev=0.5), RowScale(39.0)) == 0.5


@pytest.mark.parametrize(
    ("knobs", "validates", "course"),
    [
        ({}, True, ("plateau", 20)),
        ({}, False, ("final-decay", 10)),
        ({"n_epochs": 3}, True, ("plateau", 3)),
        ({"schedule": "constant"}, True, ("constant", 10)),
        *[({key: value}, True, ("final-decay", 10)) for key, value in (("patience", 2), ("rollbacks", 1))],
        ({"validate": "average"}, True, ("final-decay", 10)),
        ({"early_stopping": False}, True, ("final-decay", 10)),
        ({"warm_start": "yesterday/model"}, False, ("final-decay", 1)),
        ({"warm_start": "yesterday/model", "n_epochs": 4}, False, ("final-decay", 4)),
        ({"warm_start": "yesterday/model"}, True, ("plateau", 20)),
    ],
)
def test_the_schedule_follows_from_what_there_is_to_validate_on(
    knobs: dict[str, object], validates: bool, course: tuple[str, int]
) -> None:
    assert Course.of(TrainingSettings(**knobs), validates) == Course(*course)  # type: ignore[arg-type]


@pytest.mark.parametrize("knobs", [{"early_stopping": False}, {"patience": 3}, {"rollbacks": 1}])
def test_a_plateau_and_knobs_that_it_does_not_read_contradict_each_other(knobs: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r'training.schedule = "plateau" decides by itself'):
        TrainingSettings(schedule="plateau", **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_rows", "held_out"),
    [(999, 0), (1_000, 200), (4_000, 800), (5_000, 1_000), (9_000, 1_000), (50_000, 5_000), (10**7, 200_000)],
)
def test_a_tenth_of_the_rows_is_held_out_within_bounds(n_rows: int, held_out: int) -> None:
    assert automatic_held_out(n_rows) == held_out


def test_a_part_beside_named_validation_rows_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"data.validation_fraction = 0.2 has no effect beside data.validation"):
        Job.from_dict({"data": {"train": "a", "validation": "b", "validation_fraction": 0.2}})
