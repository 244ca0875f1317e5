"""The training loop, over an executor that makes losses up: when it stops, what it keeps, what it refuses."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import KernelSpec, RoundTally
from dfm.model.objective import Objective
from dfm.settings.tables import TrainingSettings
from dfm.training.automatic import RowScale, settled
from dfm.training.checkpoint import Checkpoint, Identity
from dfm.training.executor import Metrics, Parameters, Round, nothing
from dfm.training.loop import Goal, Manner, Snapshot, TrainingLoop
from dfm.training.plan import RoundPlan
from dfm.training.progress import Progress
from dfm.training.rounds import ReplicaReport, Work
from dfm.training.steps import StepSchedule, work_of

SETTINGS = settled(TrainingSettings(n_replicas=1), RowScale())
WORK = work_of(SETTINGS, "classification", KernelSpec("logistic", "adagrad", 2))
N_ROWS = 10
OBJECTIVE = Objective.of("classification")


class MadeUp:
    """Parameters are how many rounds made them; the losses of validations are given, one after the other."""

    def __init__(self, losses: Sequence[float] = (), rows: int = N_ROWS, stretch: int = 1) -> None:
        self.losses, self.rows, self.stretch = list(losses), rows, stretch
        self.begun: list[int] = []
        self.waiting: list[Work] = []
        self.submitted: list[Work] = []
        self.most_under_way, self.rounds = 0, 0
        self.bounds: Sequence[int] = (0, 7)
        self.restored: list[Any] = []
        self.judging_seconds = 0.0

    def begin_epoch(self, work: Work) -> int:
        return 1

    def submit(self, stretch: Sequence[Round]) -> None:
        self.begun.append(len(stretch))
        self.waiting += [work for work, _ in stretch]
        self.submitted += [work for work, _ in stretch]
        self.most_under_way = max(self.most_under_way, len(self.waiting))

    @property
    def under_way(self) -> int:
        return len(self.waiting)

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        n_rounds = self.begun.pop(0)
        del self.waiting[:n_rounds]
        self.rounds += n_rounds
        report = ReplicaReport(0, RoundTally(self.rows, float(self.rows), 5.0, True), 0.1, "here", 8)
        return [[report]] * n_rounds

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
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
    loop = begun(executor, goal, n_rounds, tell, **more)
    loop.run()
    return loop


def begun(
    executor: MadeUp, goal: Goal, n_rounds: int = 1, tell: Callable[[Any], None] | None = None, **more: Any
) -> TrainingLoop:
    return TrainingLoop(
        work=WORK,
        objective=more.pop("objective", OBJECTIVE),
        plan=RoundPlan(n_rounds, n_rounds),
        schedule=more.pop("schedule", StepSchedule("constant", seed=3)),
        goal=goal,
        executor=executor,
        manner=Manner(more.pop("describe", describe), lambda work, epoch, reports: None),
        n_rows=N_ROWS * n_rounds,
        tell=tell or (lambda event: None),
        **more,
    )


def test_the_best_parameters_are_kept_and_patience_ends_training() -> None:
    told: list[dict[str, Any]] = []
    loop = trained(MadeUp([0.5, 0.4, 0.45, 0.41, 0.3]), Goal(9, patience=2), tell=told.append)
    assert loop.best is not None
    assert (loop.result, loop.best.epoch, loop.best.metrics) == ([2], 2, {"log_loss": 0.4})
    assert [event["epoch"] for event in loop.at.history] == [1, 2, 3, 4]
    assert told[-1] == {"event": "stopped", "epoch": 4, "best_epoch": 2}


def test_another_metric_chooses_the_best_epoch() -> None:
    class OfTwoMinds(MadeUp):
        def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
            loss = self.losses.pop(0)
            return {"log_loss": loss, "auc": 0.5 + loss / 2}  # the worse the loss, the better the order

    losses = [0.3, 0.4, 0.5, 0.2, 0.1]
    by_auc = dataclasses.replace(OBJECTIVE, stop_on="auc")
    loop = trained(OfTwoMinds(losses), Goal(9, patience=2), objective=by_auc)
    assert loop.best is not None
    assert (loop.best.epoch, loop.best.metrics["auc"], len(loop.at.history)) == (3, 0.75, 5)
    assert by_auc.cost({"auc": 0.75}) == 0.25
    assert by_auc.cost({"auc": None}) is None
    assert OBJECTIVE.cost({"log_loss": 0.3, "auc": 0.75}) == 0.3


def test_a_metric_to_stop_on_that_no_row_defines_ends_training() -> None:
    class OfOneClass(MadeUp):
        def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
            return {"log_loss": self.losses.pop(0), "auc": None}

    by_auc = dataclasses.replace(OBJECTIVE, stop_on="auc")
    with pytest.raises(SettingsError, match=r"^auc is not defined on the rows .*: they are of one class"):
        trained(OfOneClass([0.3, 0.4]), Goal(2, patience=1), objective=by_auc)
    assert trained(OfOneClass([0.3, 0.4, 0.5]), Goal(3, patience=1)).at.epoch == 2


def test_pairs_that_no_group_to_validate_on_has_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class OfOneClass(MadeUp):
        def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
            return {"group_auc": None}

    of_pairs = Objective.of("classification", "bpr")
    with caplog.at_level("WARNING", "dfm"):
        trained(OfOneClass(), Goal(2), objective=of_pairs)
    assert "group_auc is not defined on the rows to validate on: no group has rows of both classes" in caplog.text


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


def test_what_training_begins_with_is_kept_where_no_epoch_is_better() -> None:
    told: list[dict[str, Any]] = []
    loop = trained(MadeUp([0.4, 0.5, 0.45, 0.3]), Goal(9, patience=2, judges_start=True), tell=told.append)
    assert loop.best is not None
    assert (loop.result, loop.best.epoch, loop.best.metrics) == ([0], 0, {"log_loss": 0.4})
    assert loop.at.start == {"log_loss": 0.4}
    assert told[0] == {"event": "start", "log_loss": 0.4}
    assert told[-1] == {"event": "stopped", "epoch": 2, "best_epoch": 0}


def test_an_epoch_that_is_better_than_the_start_is_kept() -> None:
    loop = trained(MadeUp([0.4, 0.5, 0.35]), Goal(2, judges_start=True))
    assert loop.best is not None
    assert (loop.result, loop.best.epoch) == ([2], 2)


def test_a_plateau_is_left_for_the_start_where_the_first_epoch_is_worse() -> None:
    executor = MadeUp([0.4, 0.41, 0.39])
    loop = trained(executor, Goal(9, plateau=True, judges_start=True), schedule=StepSchedule("plateau", seed=3))
    assert executor.restored[0] == ([0], [0, 7])
    assert loop.best is not None
    assert (loop.best.epoch, len(loop.at.history), loop.result) == (2, 2, [1])
    assert executor.submitted[-1].step.learning_rate < executor.submitted[0].step.learning_rate


def test_rows_that_were_walked_count_for_the_parameters_that_they_made() -> None:
    loop = trained(MadeUp([0.5, 0.4, 0.45, 0.39]), Goal(9, plateau=True), schedule=StepSchedule("plateau", seed=3))
    assert loop.best is not None
    assert (loop.best.epoch, loop.best.walked) == (4, 3 * N_ROWS), "the third epoch was left behind"
    straight = trained(MadeUp([0.5, 0.4]), Goal(2))
    assert straight.best is not None
    assert straight.best.walked == 2 * N_ROWS


def test_progress_without_a_start_is_read_by_who_knows_none_and_more_than_is_known_is_passed_over() -> None:
    plain = Progress().to_dict()
    assert "start" not in plain
    assert Progress.from_dict({**plain, "of a later version": 1}) == Progress()
    judged = Progress(start={"log_loss": 0.4})
    assert Progress.from_dict(judged.to_dict()) == judged


def test_nothing_is_learnt_before_an_epoch_is_over_and_a_start_that_was_judged_is_not_judged_again() -> None:
    class Interrupted(MadeUp):
        def finish(self) -> Sequence[Sequence[ReplicaReport]]:
            raise KeyboardInterrupt

    loop = begun(Interrupted([0.4, 0.5]), Goal(2, judges_start=True))
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert (loop.best is not None, loop.has_result) == (True, False)
    executor = MadeUp([0.4, 0.5, 0.45])
    half = begun(executor, Goal(2, judges_start=True))
    half.run(until=1)
    assert half.has_result
    half.run()
    assert [event["log_loss"] for event in half.at.history] == [0.5, 0.45]


def test_every_round_has_a_seed_of_its_own_and_few_are_under_way() -> None:
    executor = MadeUp()
    trained(executor, Goal(2), n_rounds=9)
    assert len({work.step.seed for work in executor.submitted}) == 18
    assert executor.most_under_way == 3
    executor = MadeUp([0.5 - number / 100 for number in range(18)])
    trained(executor, Goal(2, validates_averages=True), n_rounds=9)
    assert executor.most_under_way == 1


def test_of_rounds_that_are_begun_together_only_the_last_is_saved() -> None:
    saved: list[tuple[int, int, Parameters]] = []

    class Saver:
        def offer(self, snapshot: Snapshot) -> None:
            saved.append((snapshot.rounds_done, snapshot.state["progress"]["round"], snapshot.blocks))

        def flush(self, timeout: float = 60.0) -> None:
            raise AssertionError("not reached")

    told: list[Any] = []
    trained(MadeUp(stretch=3), Goal(2), n_rounds=8, tell=told.append, checkpointer=Saver())
    assert saved == [(3, 3, [3]), (6, 6, [6]), (8, 8, [8]), (11, 3, [11]), (14, 6, [14]), (16, 8, [16])]
    rounds = [event for event in told if event["event"] == "round"]
    assert [event["round"] for event in rounds] == [*range(1, 9)] * 2
    assert len({event["rows_per_second"] for event in rounds[:3]}) == 1, "of the stretch, whose seconds they share"


def test_training_goes_on_from_any_round_in_stretches() -> None:
    executor = MadeUp(stretch=3)
    loop = begun(executor, Goal(1), n_rounds=8)
    progress = Progress(round=2, rounds_done=2, blocks_at=2).to_dict()
    identity = Identity({}, (), [])
    loop.restore(Checkpoint(identity, {"progress": progress, "bounds": [0, 7], "best": None}, 2, (), ()), [2], ())
    loop.at.totals.rounds, loop.at.totals.rows = 2, 2 * N_ROWS
    loop.run()
    assert (loop.result, len(executor.submitted)) == ([8], 6)
    alone = MadeUp()
    trained(alone, Goal(1), n_rounds=8)
    assert [work.step for work in executor.submitted] == [work.step for work in alone.submitted[2:]]


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


# -------------------------------------------------------------------------- rounds begun before an epoch is judged ----


class Ahead(MadeUp):
    """Others judge, and rounds are begun meanwhile."""

    def __init__(self, losses: Sequence[float] = (), rows: int = N_ROWS, stretch: int = 1) -> None:
        super().__init__(losses, rows, stretch)
        self.trained: list[Work] = []
        self.given_up = 0

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        self.trained += self.waiting[: self.begun[0]]
        return super().finish()

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        metrics = super().evaluate(work)
        meanwhile()
        return metrics

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        self.given_up += len(self.waiting)
        self.waiting.clear()
        self.begun.clear()
        super().restore(parameters, bounds)


FALLING = [0.5 - number / 100 for number in range(12)]
ENDS: dict[str, tuple[list[float], Goal]] = {
    "all epochs": (FALLING, Goal(5)),
    "one epoch": (FALLING, Goal(1)),
    "patience": ([0.5, 0.4, 0.45, 0.41, 0.3], Goal(9, patience=2)),
    "no patience": ([0.5, 0.4, 0.45, 0.41, 0.3], Goal(9, patience=1)),
    "rollbacks": ([0.4, 0.5, 0.3, 0.6, 0.7], Goal(9, patience=1, rollbacks=2)),
    "patience and rollbacks": ([0.4, 0.5, 0.6, 0.3, 0.6, 0.7], Goal(9, patience=2, rollbacks=1)),
    "validating each average": (FALLING, Goal(3, validates_averages=True)),
    "a plateau that rises": ([0.5, 0.4, 0.35, 0.31, 0.30, 0.29, 0.4, 0.28, 0.27], Goal(20, plateau=True)),
    "a plateau without gain": ([0.5, 0.49999, 0.49998, 0.3, 0.2], Goal(20, plateau=True)),
    "a plateau as long as it may be": ([0.5 - number / 100 for number in range(30)], Goal(20, plateau=True)),
    "two worse epochs of a fall": ([*FALLING, 0.6, 0.38, 0.40, 0.41, 0.1], Goal(20, plateau=True)),
}

UNFORESEEN = "a plateau that rises", "two worse epochs of a fall"
"""Where the loss rose by so much that the plateau was left at once."""


@pytest.mark.parametrize("stretch", [1, 2, 3])
@pytest.mark.parametrize("n_rounds", [1, 2, 5])
@pytest.mark.parametrize("end", ENDS)
def test_rounds_that_begin_before_their_epoch_is_judged_or_together_change_nothing(
    end: str, n_rounds: int, stretch: int
) -> None:
    losses, goal = ENDS[end]
    more: dict[str, Any] = {"n_rounds": n_rounds, "schedule": StepSchedule("plateau", seed=3)} if goal.plateau else {}
    told: tuple[list[Any], list[Any]] = [], []
    plain, ahead = MadeUp(losses), Ahead(losses, stretch=stretch)
    expected = trained(plain, goal, tell=told[0].append, **{"n_rounds": n_rounds, **more})
    found = trained(ahead, goal, tell=told[1].append, **{"n_rounds": n_rounds, **more})
    assert [work.step for work in ahead.trained] == [work.step for work in plain.submitted]
    assert (found.result, found.at.history, found.at.rounds_done) == (
        expected.result,
        expected.at.history,
        expected.at.rounds_done,
    )
    assert [e for e in told[1] if e["event"] != "round"] == [e for e in told[0] if e["event"] != "round"]
    assert not ahead.waiting
    assert ahead.given_up == (min(n_rounds, 3 if stretch == 3 else 2) if end in UNFORESEEN else 0)


def test_the_first_rounds_of_the_next_epoch_wait_for_no_judgement() -> None:
    ahead: list[int] = []

    class Watched(Ahead):
        def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
            metrics = super().evaluate(work, meanwhile)
            ahead.append(self.under_way)
            return metrics

    trained(Watched(FALLING), Goal(3), n_rounds=5)
    assert ahead == [2, 2, 0]
    ahead.clear()
    trained(Watched(FALLING), Goal(3), n_rounds=1)
    assert ahead == [1, 1, 0]


@pytest.mark.parametrize("waits", [False, True])
def test_the_seconds_of_a_judgement_are_told_once(waits: bool) -> None:
    """Those in which nothing was trained are of validation; where rounds are under way, they are the next epoch's, but
    if these have to wait, since who trains has to judge before.
    """
    told: list[tuple[float, float]] = []

    class Slow(Ahead):
        def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
            metrics = super().evaluate(work, meanwhile)
            time.sleep(0.8)  # longer than a busy machine makes the rest take
            self.judging_seconds = 0.8 if waits else 0.0
            return metrics

    def describe_seconds(epoch: int, totals: Any, metrics: Metrics, n_walks: int, seconds: float) -> dict[str, Any]:
        told.append((totals.seconds, seconds))
        return describe(epoch, totals, metrics, n_walks, seconds)

    trained(Slow(FALLING), Goal(3), 2, describe=describe_seconds)
    trained_in, judged_in = zip(*told, strict=True)
    assert [seconds >= 0.8 for seconds in trained_in] == [False, not waits, not waits]
    assert [seconds >= 0.8 for seconds in judged_in] == [waits, waits, True]


def test_no_round_is_begun_beyond_the_epoch_that_a_call_ends_with() -> None:
    executor = Ahead(FALLING)
    loop = begun(executor, Goal(6), 3)
    for until, submitted in ((2, 6), (3, 9), (6, 18)):
        loop.run(until)
        assert (executor.under_way, len(executor.submitted)) == (0, submitted)


# ------------------------------------------------------------------------------------------- the plateau ----


def on_plateau(
    losses: Sequence[float], n_epochs: int = 20, n_rounds: int = 1
) -> tuple[MadeUp, TrainingLoop, list[Any]]:
    """A training with the schedule "plateau" whose validations give these losses; what it told."""
    told: list[dict[str, Any]] = []
    executor = MadeUp(losses)
    goal = Goal(n_epochs, plateau=True)
    loop = trained(executor, goal, n_rounds, told.append, schedule=StepSchedule("plateau", seed=3))
    return executor, loop, [event for event in told if event["event"] in ("plateau", "stopped")]


def rates_of(executor: MadeUp) -> list[float]:
    """Step sizes of all rounds, in parts of the first."""
    rates = [work.step.learning_rate for work in executor.submitted]
    return [rate / rates[0] for rate in rates]


def test_a_plateau_is_left_when_the_loss_rises_and_the_rate_falls_from_the_best_parameters() -> None:
    executor, loop, told = on_plateau([0.5, 0.4, 0.35, 0.31, 0.30, 0.29, 0.4, 0.28, 0.27])
    assert told == [{"event": "plateau", "epoch": 7, "to_epoch": 6, "epochs": 2}]
    assert executor.restored == [([6], [0, 7])]
    assert loop.best is not None
    assert (loop.best.epoch, loop.best.metrics["log_loss"], len(loop.at.history)) == (9, 0.27, 9)
    # 1 - .95 (d + 1/2) / 2 in the middle of each of two epochs of one slice
    assert rates_of(executor) == pytest.approx([1.0] * 7 + [0.7625, 0.2875])


def test_the_falling_rate_goes_by_slices() -> None:
    executor, _, told = on_plateau([0.5, 0.6, 0.4], n_rounds=4)
    assert told == [{"event": "plateau", "epoch": 2, "to_epoch": 1, "epochs": 1}]
    assert rates_of(executor)[8:] == pytest.approx([1 - 0.95 * (d + 0.5) / 4 for d in range(4)])


@pytest.mark.parametrize(
    ("losses", "left_after"),
    [
        ([0.5, 0.49999, 0.49998, 0.3, 0.2], 3),  # two epochs that gain less than 1e-4 of it
        ([0.5, 0.5009, 0.4, 0.39, 0.5], 5),  # a rise of less than 0.2 % is waited out
        ([0.5, 0.5011, 0.4, 0.39], 2),
        ([0.5 - number / 100 for number in range(30)], 15),  # of 20 epochs, 5 are left for the end
    ],
)
def test_a_plateau_ends_by_gain_by_rise_or_by_the_epochs_that_are_left(losses: list[float], left_after: int) -> None:
    _, loop, told = on_plateau(losses)
    assert told[0]["epoch"] == left_after
    assert len(loop.at.history) <= 20


@pytest.mark.parametrize("n_epochs", range(1, 30))
def test_no_more_epochs_are_walked_than_are_allowed(n_epochs: int) -> None:
    _, loop, _ = on_plateau([0.5 - number / 1000 for number in range(40)], n_epochs)
    assert len(loop.at.history) <= n_epochs
    assert len(loop.at.history) >= n_epochs - 1


def test_two_worse_epochs_in_a_row_end_the_fall_and_the_best_is_kept() -> None:
    falling = [0.5 - number / 100 for number in range(12)]
    _, loop, told = on_plateau([*falling, 0.6, 0.38, 0.40, 0.41, 0.1])
    assert told[0] == {"event": "plateau", "epoch": 13, "to_epoch": 12, "epochs": 4}
    assert told[1] == {"event": "stopped", "epoch": 16, "best_epoch": 14}
    assert loop.best is not None
    assert loop.best.metrics["log_loss"] == 0.38


def test_a_training_that_stands_behind_its_plateau_goes_on_as_if_it_had_never_stopped() -> None:
    losses = [0.5, 0.4, 0.35, 0.31, 0.30, 0.29, 0.4, 0.28, 0.27]
    saved: list[Any] = []

    class Saver:
        def offer(self, snapshot: Any) -> None:
            saved.append(snapshot)

        def flush(self, timeout: float = 60.0) -> None: ...

    whole = MadeUp(losses)
    goal = Goal(20, plateau=True)
    told: list[Any] = []
    more: dict[str, Any] = {"schedule": StepSchedule("plateau", seed=3)}
    reference = trained(whole, goal, tell=told.append, checkpointer=Saver(), **more)
    snapshot = next(each for each in saved if each.state["progress"]["epoch"] == 8)
    again = MadeUp(losses[7:])
    loop = dataclasses.replace(reference, executor=again, at=Progress(), best=None)
    checkpoint = Checkpoint(Identity({}, []), snapshot.state, snapshot.rounds_done, (), ())
    loop.restore(checkpoint, snapshot.blocks, snapshot.best_blocks)
    loop.run()
    assert loop.best is not None
    assert reference.best is not None
    assert (loop.best.metrics, loop.result) == (reference.best.metrics, reference.result)
    expected = [(work.step.learning_rate, work.step.seed) for work in whole.submitted[8:]]
    assert [(work.step.learning_rate, work.step.seed) for work in again.submitted] == expected
