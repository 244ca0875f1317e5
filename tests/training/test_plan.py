"""Dealing rows out to replicas: none lost, none twice, sizes equal to one row, and nothing but the job decides."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data.parquet import Shard, Unit
from dfm.errors import SettingsError
from dfm.settings.tables import TrainingSettings
from dfm.training import plan as plans
from dfm.training.plan import (
    Plan,
    averages,
    group_units,
    plan_held_out,
    plan_reading,
    plan_training,
    plan_validation,
)


def shard(number: int, *row_groups: int) -> Shard:
    return Shard(f"day=1/part-{number:05d}.parquet", 1000, "now", row_groups, ())


def rows_of(units: Sequence[Unit]) -> list[tuple[str, int]]:
    """(shard, row) of every row, in the order of reading."""
    return [(unit.shard.url, row) for unit in units for row in range(unit.start, unit.stop)]


def all_rows(shards: Sequence[Shard]) -> list[tuple[str, int]]:
    return [(entry.url, row) for entry in shards for row in range(entry.n_rows)]


def replica_rows(plan: Plan) -> list[list[tuple[str, int]]]:
    return [[row for units in tasks for row in rows_of(units)] for tasks in plan.replicas]


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Limits at which small shards behave like large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "PIECE_ROWS", 8)
        patch.setattr(plans, "TASK_ROWS", 16)
        patch.setattr(plans, "MOST_TASK_ROWS", 40)
        yield


SHARDS = st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=8).map(
    lambda sizes: [shard(number, *row_groups) for number, row_groups in enumerate(sizes)]
)
SHAPES = {
    "few rows": [shard(0, 3)],
    "one big row group": [shard(0, 1000)],
    "one big shard of small row groups": [shard(0, *[7] * 150)],
    "many tiny shards": [shard(number, 1) for number in range(300)],
    "empty shards among others": [shard(0, 0), shard(1, 5, 0, 5), shard(2), shard(3, 90)],
}


def dealt(n_replicas: int, averages_per_epoch: int | str) -> TrainingSettings:
    return TrainingSettings(n_replicas=n_replicas, averages_per_epoch=averages_per_epoch, tune="none")


def check_training(shards: Sequence[Shard], n_replicas: int, seed: int) -> None:
    plan = plan_training(shards, dealt(n_replicas, 4), seed)
    replicas = replica_rows(plan)
    assert sorted(row for rows in replicas for row in rows) == sorted(all_rows(shards))
    sizes = [len(rows) for rows in replicas]
    assert sizes == [plan.rows_of(r) for r in range(n_replicas)]
    assert plan.n_replicas == n_replicas
    assert max(sizes) - min(sizes) <= 1
    for tasks in plan.replicas:
        assert all(unit.n_rows > 0 for units in tasks for unit in units)
        assert all(len(units) == 1 or sum(unit.n_rows for unit in units) <= 16 for units in tasks)
        assert all(unit.n_rows <= 40 for units in tasks for unit in units)


@given(SHARDS, st.integers(1, 12), st.integers(0, 2**63))
def test_every_row_goes_to_one_replica_and_replicas_are_equal_to_one_row(shards, n_replicas, seed):
    check_training(shards, n_replicas, seed)


@pytest.mark.parametrize("shards", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n_replicas", [1, 2, 7, 64])
def test_shards_of_any_shape_are_dealt_out_evenly(shards, n_replicas):
    check_training(shards, n_replicas, 0)


def test_more_replicas_than_rows_leaves_some_without_any():
    plan = plan_training([shard(0, 3)], dealt(8, "auto"), 1)
    assert sorted(plan.rows_of(r) for r in range(8)) == [0] * 5 + [1] * 3
    assert plan.n_slices == 1


@given(SHARDS, st.integers(1, 5), st.integers(0, 1000))
def test_the_same_job_gives_the_same_replicas_whatever_else_goes_on(shards, n_replicas, seed):
    first = plan_training(shards, dealt(n_replicas, "auto"), seed)
    random.seed(seed + 1)
    np.random.seed(seed + 1)  # noqa: NPY002 (the point is that the global state does not matter)
    assert plan_training(list(shards), dealt(n_replicas, "auto"), seed) == first


def test_a_plan_depends_on_the_sizes_of_shards_not_on_where_or_when_they_were_written():
    shards = [shard(number, *[5] * 4) for number in range(10)]
    moved = [dataclasses.replace(entry, url=f"s3://bucket/{entry.url}", modified="later") for entry in shards]
    here, there = plan_training(shards, dealt(3, 4), 1), plan_training(moved, dealt(3, 4), 1)
    ranges = [[[(u.shard.url.split("/")[-1], u.start, u.stop) for u in units] for t in p.replicas for units in t]
              for p in (here, there)]  # fmt: skip
    assert ranges[0] == ranges[1]


def test_another_seed_deals_otherwise_and_neighbouring_shards_are_spread():
    shards = [shard(number, 8) for number in range(64)]
    one, two = replica_rows(plan_training(shards, dealt(4, 4), 1)), replica_rows(plan_training(shards, dealt(4, 4), 2))
    assert one != two
    for rows in one:
        numbers = sorted({int(url[-13:-8]) for url, _ in rows})
        assert numbers[0] < 16
        assert numbers[-1] >= 48


def test_a_row_group_that_fits_a_piece_is_read_by_one_task_of_one_replica_almost_always():
    """Only the replicas' borders cut row groups: whoever reads the end of one decodes its beginning too."""
    shards = [shard(number, *[8] * 10) for number in range(8)]
    plan = plan_training(shards, dealt(5, 4), 3)
    units = [unit for tasks in plan.replicas for units in tasks for unit in units]
    cut = [unit for unit in units if unit.start % 8 or unit.stop % 8]
    assert len(cut) <= 2 * (5 - 1)


# -------------------------------------------------------------------------------------------------- reading ----


@given(SHARDS)
def test_reading_tasks_give_all_rows_in_the_order_of_the_shards(shards):
    tasks = plan_reading(shards)
    assert [row for units in tasks for row in rows_of(units)] == all_rows(shards)
    assert all(units for units in tasks)


def test_small_units_are_read_together_and_huge_ones_apart():
    units = [Unit(shard(0, 100), 0, 100), *(Unit(shard(n, 6), 0, 6) for n in range(1, 6))]
    sizes = [[unit.n_rows for unit in task] for task in group_units(units)]
    assert sizes == [[40], [40], [20], [6, 6], [6, 6], [6]]


@given(SHARDS)
def test_few_rows_to_validate_on_are_read_in_more_tasks(shards):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_LEAST_VALIDATION_ROWS", 4)
        tasks = [units for (units,) in plan_validation(shards)]
    assert [row for units in tasks for row in rows_of(units)] == all_rows(shards)
    share = max(4, len(all_rows(shards)) // plans._LEAST_VALIDATION_TASKS)
    assert all(len(units) == 1 or sum(unit.n_rows for unit in units) <= share for units in tasks)


def test_one_shard_of_small_row_groups_is_judged_in_several_tasks(monkeypatch):
    monkeypatch.setattr(plans, "TASK_ROWS", 1 << 18)
    monkeypatch.setattr(plans, "MOST_TASK_ROWS", 1 << 20)
    monkeypatch.setattr(plans, "PIECE_ROWS", 1 << 17)
    (only,) = [dataclasses.replace(shard(0, 10_000), row_groups=(10_000,) * 13)]
    assert [sum(unit.n_rows for unit in units) for (units,) in plan_validation([only])] == [30_000] * 4 + [10_000]


@given(SHARDS, st.integers(1, 5), st.booleans())
def test_rows_held_out_are_judged_by_the_tasks_that_read_the_others_as_many_together_as_few_rows_need(
    shards, n_replicas, mixed
):
    training = TrainingSettings(n_replicas=min(n_replicas, max(1, len(all_rows(shards)))), averages_per_epoch=1)
    plan = plan_training(shards, training, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_LEAST_VALIDATION_ROWS", 4)
        found = plan_held_out(plan.tasks(mixed))
    assert [units for tasks in found for units in tasks] == plan.tasks(mixed)
    assert sorted(row for tasks in found for units in tasks for row in rows_of(units)) == sorted(all_rows(shards))
    share = min(max(4, len(all_rows(shards)) // plans._LEAST_VALIDATION_TASKS), plans.TASK_ROWS)
    sizes = [[sum(unit.n_rows for unit in units) for units in tasks] for tasks in found]
    assert all(len(each) == 1 or sum(each) <= share for each in sizes)
    assert all(sum(here) + there[0] > share for here, there in itertools.pairwise(sizes))


# --------------------------------------------------------------------------------------------------- rounds ----


@pytest.mark.parametrize(
    ("n_rows", "n_replicas", "asked", "first", "later"),
    [
        (1000, 2, 8, 8, 8),
        (1000, 2, 1, 1, 1),
        (10, 4, 8, 2, 2),
        (3, 8, 8, 1, 1),
        (0, 1, 8, 1, 1),
        (1_000, 1, "auto", 1, 1),
        (1_000_000, 64, "auto", 32, 32),
        (109_217, 8, "auto", 12, 4),
        (109_217, 7, "auto", 11, 4),
        (10**9, 2, "auto", 3, 1),
        (10**9, 8, "auto", 6, 2),
        (10**9, 64, "auto", 16, 16),
        (10**9, 8, 12, 12, 12),
    ],
)
def test_averages_come_from_the_job_and_the_size_of_the_data(n_rows, n_replicas, asked, first, later):
    assert averages(n_rows, dealt(n_replicas, asked)) == (first, later)


@pytest.mark.parametrize(
    ("n_rows", "rows_per_round", "rounds"),
    [(8_000_000, 250_000, 4), (8_000_000, 300_000, 3), (100, 1_000, 1), (8, 1, 1)],
)
def test_rounds_of_a_fixed_number_of_rows_grow_in_number_with_the_data(
    n_rows: int, rows_per_round: int, rounds: int
) -> None:
    assert averages(n_rows, TrainingSettings(n_replicas=8, rows_per_round=rows_per_round)) == (rounds, rounds)


@pytest.mark.parametrize(
    ("n_rows", "settings", "expected"),
    [
        (1_000, {"averages_per_epoch": 8, "later_averages": 3}, (8, 3)),
        (10, {"averages_per_epoch": 8, "later_averages": 8}, (5, 5)),
        (1_000, {"rows_per_round": 100, "later_averages": 9}, (5, 5)),
        (100_000, {"later_averages": 5}, (6, 5)),
        (10**8, {"later_averages": 5}, (3, 3)),
    ],
)
def test_later_epochs_have_as_many_averages_as_asked_for_and_never_more_than_the_first(
    n_rows: int, settings: dict[str, int], expected: tuple[int, int]
) -> None:
    assert averages(n_rows, TrainingSettings(n_replicas=2, tune="none", **settings)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_rows", "n_replicas", "expected"),
    [
        (1_499, 1, (1, 1)),  # a third of them tells nothing
        (1_500, 1, (12, 1)),
        (109_217, 7, (12, 4)),
        (1_000_000, 64, (32, 32)),
        (10**9, 1, (6, 1)),
    ],
)
def test_a_first_epoch_with_a_pilot_has_rounds_to_compare(
    n_rows: int, n_replicas: int, expected: tuple[int, int]
) -> None:
    assert averages(n_rows, TrainingSettings(n_replicas=n_replicas)) == expected


@given(st.integers(1, 40), st.data())
def test_every_epoch_walks_every_slice_once_in_rounds_of_almost_equal_length(
    n_slices: int, data: st.DataObject
) -> None:
    plan = Plan(n_slices, data.draw(st.integers(1, n_slices)), (), seed=0)
    for epoch in (1, 2, 7):
        rounds = plan.rounds(epoch)
        assert [number for each in rounds for number in each] == list(range(n_slices))
        assert len(rounds) == plan.n_rounds(epoch)
        lengths = [len(each) for each in rounds]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= plan.longest_round
    assert max(len(each) for each in plan.rounds(2)) == plan.longest_round
    assert plan.rounds(1) == [range(number, number + 1) for number in range(n_slices)]
    assert plan.rounds_until(5) == sum(plan.n_rounds(epoch) for epoch in range(1, 6))


@pytest.mark.parametrize(("n_slices", "later"), [(1, 1), (12, 12), (12, 5), (6, 2)])
def test_a_schedule_follows_the_rows_whatever_the_rounds(n_slices: int, later: int) -> None:
    plan, n_epochs = Plan(n_slices, later, (), seed=0), 3
    rounds = [(epoch, slices) for epoch in range(1, n_epochs + 1) for slices in plan.rounds(epoch)]
    standings = [plan.standing(epoch, slices, n_epochs) for epoch, slices in rounds]
    assert {total for _, total in standings} == {n_epochs * n_slices}
    weighted = sum(at * len(slices) for (at, _), (_, slices) in zip(standings, rounds, strict=True))
    assert weighted == sum(range(n_epochs * n_slices))
    assert [at for at, _ in standings] == sorted(at for at, _ in standings)
    assert standings[0][0] == 0


def test_later_epochs_cannot_have_more_averages_than_the_first() -> None:
    with pytest.raises(SettingsError, match=r"later_averages = 5 is more than training.averages_per_epoch = 4"):
        TrainingSettings(averages_per_epoch=4, later_averages=5)


def test_two_answers_to_how_often_to_average_are_refused() -> None:
    with pytest.raises(SettingsError, match="both say how often to average"):
        TrainingSettings(rows_per_round=1000, averages_per_epoch=4)
