"""The training loop, over an executor that makes losses up: when it stops, what it keeps, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dfm.errors import ClusterError
from dfm.kernels.contract import KernelSpec, RoundTally
from dfm.model.objective import Objective
from dfm.settings.tables import TrainingSettings
from dfm.training.loop import Goal, Manner, Metrics, Parameters, TrainingLoop
from dfm.training.plan import RoundPlan
from dfm.training.rounds import ReplicaReport, Work
from dfm.training.steps import StepSchedule, work_of

WORK = work_of(TrainingSettings(n_replicas=1), "classification", KernelSpec("logistic", "adagrad", 2))
N_ROWS = 10


class MadeUp:
    """Parameters are how many rounds made them; the losses of validations are given, one after the other."""

    def __init__(self, losses: Sequence[float] = (), rows: int = N_ROWS) -> None:
        self.losses, self.rows = list(losses), rows
        self.waiting: list[Work] = []
        self.submitted: list[Work] = []
        self.most_under_way, self.rounds = 0, 0
        self.bounds: Sequence[int] = (0, 7)
        self.restored: list[Any] = []

    def begin_epoch(self, work: Work) -> int:
        return 1

    def submit(self, work: Work, slices: range) -> None:
        self.waiting.append(work)
        self.submitted.append(work)
        self.most_under_way = max(self.most_under_way, len(self.waiting))

    @property
    def under_way(self) -> int:
        return len(self.waiting)

    def finish(self) -> Sequence[ReplicaReport]:
        self.waiting.pop(0)
        self.rounds += 1
        return [ReplicaReport(0, RoundTally(self.rows, float(self.rows), 5.0, True), 0.1, "here", 8)]

    def evaluate(self, work: Work) -> Metrics:
        assert not self.waiting
        return {"log_loss": self.losses.pop(0)} if self.losses else {}

    @property
    def parameters(self) -> Parameters:
        return [self.rounds]

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        (self.rounds,) = parameters
        self.restored.append((list(parameters), list(bounds)))


def describe(epoch: int, totals: Any, metrics: Metrics, n_walks: int, seconds: float) -> dict[str, Any]:
    return {"event": "epoch", "epoch": epoch, **metrics}


def trained(
    executor: MadeUp, goal: Goal, n_rounds: int = 1, tell: Callable[[Any], None] | None = None, **more: Any
) -> TrainingLoop:
    loop = TrainingLoop(
        work=WORK,
        objective=Objective.of("classification"),
        plan=RoundPlan(n_rounds, n_rounds),
        schedule=StepSchedule("constant", seed=3),
        goal=goal,
        executor=executor,
        manner=Manner(describe, lambda epoch, reports: None),
        n_rows=N_ROWS * n_rounds,
        tell=tell or (lambda event: None),
        **more,
    )
    loop.run()
    return loop


def test_the_best_parameters_are_kept_and_patience_ends_training() -> None:
    told: list[dict[str, Any]] = []
    loop = trained(MadeUp([0.5, 0.4, 0.45, 0.41, 0.3]), Goal(9, patience=2), tell=told.append)
    assert loop.best is not None
    assert (loop.result, loop.best.epoch, loop.best.metrics) == ([2], 2, {"log_loss": 0.4})
    assert [event["epoch"] for event in loop.at.history] == [1, 2, 3, 4]
    assert told[-1] == {"event": "stopped", "epoch": 4, "best_epoch": 2}


def test_without_patience_all_epochs_are_trained() -> None:
    loop = trained(MadeUp([0.5, 0.6, 0.7, 0.8]), Goal(4))
    assert (len(loop.at.history), loop.result) == (4, [1])


def test_a_loss_that_falls_by_less_than_the_tolerance_is_kept_and_counts_as_no_better() -> None:
    loop = trained(MadeUp([0.5, 0.499, 0.498, 0.2]), Goal(9, patience=2, tolerance=0.01))
    assert (len(loop.at.history), loop.result) == (3, [3])


def test_without_rows_to_validate_on_the_last_parameters_count_and_each_epoch_may_be_published() -> None:
    loop = trained(MadeUp(), Goal(3, patience=1))
    assert loop.best is not None
    assert (loop.best.epoch, loop.result) == (3, [3])
    watching = trained(MadeUp(), Goal(9, patience=2, watches_training=True, keeps_epochs=False))
    assert watching.best is None
    assert (len(watching.at.history), watching.result) == (3, [3])  # the loss of training rows never fell


def test_it_goes_back_to_the_best_with_half_the_rate_before_it_stops() -> None:
    told: list[dict[str, Any]] = []
    executor = MadeUp([0.4, 0.5, 0.3, 0.6])
    loop = trained(executor, Goal(9, patience=1, rollbacks=1), tell=told.append)
    rates = [work.step.learning_rate for work in executor.submitted]
    assert rates == [pytest.approx(rates[0] * factor) for factor in (1, 1, 0.5, 0.5)]
    assert executor.restored == [([1], [0, 7])]
    assert {"event": "rolled_back", "to_epoch": 1, "rate_factor": 0.5} in told
    assert loop.best is not None
    assert (loop.best.epoch, loop.at.rounds_done, loop.result) == (3, 4, [2])


def test_every_round_has_a_seed_of_its_own_and_few_are_under_way() -> None:
    executor = MadeUp()
    trained(executor, Goal(2), n_rounds=9)
    assert len({work.step.seed for work in executor.submitted}) == 18
    assert executor.most_under_way == 3
    executor = MadeUp([0.5 - number / 100 for number in range(18)])
    trained(executor, Goal(2, validates_averages=True), n_rounds=9)
    assert executor.most_under_way == 1


def test_rows_that_were_not_trained_exactly_once_are_an_error() -> None:
    with pytest.raises(ClusterError, match="epoch 1 trained 9 rows of 10"):
        trained(MadeUp(rows=9), Goal(2))


def test_parameters_get_a_new_origin_before_their_history_becomes_long() -> None:
    calls: list[int] = []

    class Renewer:
        def renew(self, rounds_done: int, blocks: Parameters, best: Parameters) -> tuple[Parameters, Parameters]:
            calls.append(rounds_done)
            return blocks, best

    executor = MadeUp()
    trained(executor, Goal(2), n_rounds=70, renewer=Renewer())
    assert calls == [64, 128]
    assert [parameters for parameters, _ in executor.restored] == [[64], [128]]
