"""The pilot: what it compares, what it chooses, and that the training goes on as if the chosen one had been alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from dfm.errors import DivergenceError
from dfm.kernels.contract import KernelSpec, RoundTally, Step
from dfm.model.objective import Objective
from dfm.settings.tables import TrainingSettings
from dfm.training.automatic import CANDIDATES, RowScale, n_pilot_slices, settled, wants_pilot
from dfm.training.executor import Metrics, Parameters, Round, nothing
from dfm.training.loop import Goal, Manner, TrainingLoop
from dfm.training.pilot import MARGIN, Pilot
from dfm.training.plan import RoundPlan
from dfm.training.progress import check_round
from dfm.training.rounds import ReplicaReport, Work
from dfm.training.steps import StepSchedule, step_of, work_of

SETTINGS = TrainingSettings(n_replicas=2)
NUMBERS = {name: settled(SETTINGS, RowScale(), candidate) for name, candidate in CANDIDATES.items()}
STEPS: dict[str, Step] = {name: step_of(each) for name, each in NUMBERS.items()}
NAMES = {step.learning_rate: name for name, step in STEPS.items()}
WORK = work_of(NUMBERS["default"], "classification", KernelSpec("logistic", "adagrad", 2))
ROWS = 10


class Trials:
    """An executor whose rounds have the losses of their step, and whose parameters are the steps that made them."""

    def __init__(
        self, losses: Mapping[str, float], validated: Mapping[str, float] | None = None, stretch: int = 1
    ) -> None:
        self.losses, self.validated, self.stretch = losses, validated or {}, stretch
        self.begun: list[int] = []
        self.walked: list[tuple[str, int]] = []
        self.waiting: list[tuple[Work, int]] = []
        self.forks: list[Trials] = []
        self.most_under_way = 0
        self.bounds: Sequence[int] = (0, 7)
        self.judging_seconds = 0.0

    def begin_epoch(self, work: Work) -> int:
        return 1

    def fork(self, parameters: Parameters) -> Trials:
        other = Trials(self.losses, self.validated, self.stretch)
        other.restore(parameters, self.bounds)
        self.forks.append(other)
        return other

    def submit(self, stretch: Sequence[Round]) -> None:
        self.begun.append(len(stretch))
        self.waiting += [(work, ROWS * len(slices)) for work, slices in stretch]
        self.most_under_way = max(self.most_under_way, len(self.waiting))

    @property
    def under_way(self) -> int:
        return len(self.waiting)

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        return [self._finished() for _ in range(self.begun.pop(0))]

    def _finished(self) -> Sequence[ReplicaReport]:
        work, rows = self.waiting.pop(0)
        name = NAMES[work.step.learning_rate]
        self.walked.append((name, work.step.seed))
        loss = self.losses[name]
        tally = RoundTally(rows, float(rows), loss * rows, math.isfinite(loss))
        return [ReplicaReport(replica, tally, 0.1, "here", 8) for replica in range(2)]

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        name = self.walked[-1][0]
        return {"log_loss": self.validated[name]} if name in self.validated else {}

    @property
    def parameters(self) -> Parameters:
        return list(self.walked)

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        self.walked = list(parameters)


def trained(
    losses: Mapping[str, float],
    validated: Mapping[str, float] | None = None,
    n_slices: int = 6,
    stretch: int = 1,
    **pilot: Any,
) -> tuple[TrainingLoop, list[dict[str, Any]]]:
    """A training of two epochs that begins with a pilot, and the pilot's events."""
    told: list[dict[str, Any]] = []
    objective = Objective.of("classification")

    loop = TrainingLoop(
        work=WORK,
        objective=objective,
        plan=RoundPlan(n_slices, 2),
        schedule=StepSchedule("constant", seed=3),
        goal=Goal(2),
        executor=Trials(losses, validated, stretch),
        manner=Manner(
            lambda epoch, totals, metrics, n_walks, seconds: {"event": "epoch", "rows": totals.rows},
            functools.partial(check_round, objective),
        ),
        n_rows=2 * ROWS * n_slices,
        tell=told.append,
        pilot=Pilot(STEPS, {name: {} for name in STEPS}, n_slices // 3, **pilot),
    )
    loop.run()
    return loop, [event for event in told if event["event"] == "pilot"]


def alone(name: str, n_slices: int = 6) -> list[tuple[str, int]]:
    """What a training with these settings from the start walks: settings and seed of every round."""
    executor = Trials(dict.fromkeys(STEPS, 0.5))
    loop = TrainingLoop(
        work=dataclasses.replace(WORK, step=STEPS[name]),
        objective=Objective.of("classification"),
        plan=RoundPlan(n_slices, 2),
        schedule=StepSchedule("constant", seed=3),
        goal=Goal(2),
        executor=executor,
        manner=Manner(lambda *_: {"event": "epoch"}, lambda *_: None),
        n_rows=2 * ROWS * n_slices,
        tell=lambda event: None,
    )
    loop.run()
    return executor.walked


BARELY, CLEARLY = 1 - 0.9 * MARGIN, 1 - 1.1 * MARGIN


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("factors", "chosen"),
    [
        ((1, 1, 1), "default"),
        ((1, BARELY, BARELY), "default"),
        ((1, CLEARLY, BARELY), "cautious"),
        ((1, 0.9, 0.8), "bold"),
        ((1, math.inf, CLEARLY), "bold"),
        ((1, math.inf, math.nan), "default"),
        ((math.inf, 1, math.inf), "cautious"),
    ],
)
def test_training_goes_on_with_the_best_as_if_it_had_been_alone(
    factors: tuple[float, float, float], chosen: str, together: bool
) -> None:
    losses = {name: 0.5 * factor for name, factor in zip(STEPS, factors, strict=True)}
    loop, (event,) = trained(losses, together=together)
    assert event["chosen"] == loop.at.pilot["chosen"] == chosen
    assert loop.result == alone(chosen)
    assert [record["rows"] for record in loop.at.history] == [120, 120]
    assert loop.at.rounds_done == 8


def test_candidates_are_walked_from_the_same_start_with_the_same_seeds_and_a_third_of_the_epoch() -> None:
    loop, _ = trained(dict.fromkeys(STEPS, 0.5))
    forks = loop.executor.forks  # type: ignore[attr-defined]
    assert [[name for name, _ in fork.walked] for fork in forks] == [[name] * 2 for name in STEPS]
    assert len({tuple(seed for _, seed in fork.walked) for fork in forks}) == 1


@pytest.mark.parametrize("together", [True, False])
def test_while_one_round_is_waited_for_workers_have_the_next(together: bool) -> None:
    loop, _ = trained(dict.fromkeys(STEPS, 0.5), n_slices=9, together=together)
    assert {fork.most_under_way for fork in loop.executor.forks} == {2}  # type: ignore[attr-defined]


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("stretch", [2, 3, 4, 9])
def test_rounds_that_are_begun_together_change_nothing(stretch: int, together: bool, late: bool) -> None:
    losses, validated = {"default": 0.5, "cautious": 0.6, "bold": 0.3}, {"default": 0.4, "bold": 0.3, "cautious": 0.1}
    how: dict[str, Any] = {"n_slices": 9, "together": together, "is_late": late}
    alone, told_alone = trained(losses, validated if late else None, **how)
    loop, told = trained(losses, validated if late else None, **how, stretch=stretch)
    assert (loop.result, loop.at.history, told) == (alone.result, alone.at.history, told_alone)


def test_what_does_not_fit_the_memory_side_by_side_is_walked_again() -> None:
    loop, _ = trained({"default": 0.5, "cautious": 0.4, "bold": 0.5}, together=False)
    assert [fork.walked[0][0] for fork in loop.executor.forks] == [*STEPS, "cautious"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("validated", "chosen"),
    [
        ({"default": 0.4, "cautious": 0.1, "bold": 0.3}, "bold"),  # cautious was given up after a third
        ({"default": 0.4, "cautious": 0.1, "bold": 0.399}, "default"),
        ({}, "bold"),
    ],
)
def test_with_many_replicas_validation_decides_after_the_epoch(
    validated: Mapping[str, float], chosen: str, together: bool
) -> None:
    losses = {"default": 0.5, "cautious": 0.6, "bold": 0.45}
    loop, (event,) = trained(losses, validated, is_late=True, together=together)
    assert event["chosen"] == chosen
    assert event["losses"].keys() == {"default", "bold"}
    assert loop.executor.parameters == alone(chosen)
    assert [record["rows"] for record in loop.at.history] == [120, 120]


def test_candidates_that_all_diverge_end_the_training() -> None:
    with pytest.raises(DivergenceError, match="training diverged in epoch 1"):
        trained(dict.fromkeys(STEPS, math.inf))


def test_a_rate_that_is_given_a_model_to_go_on_from_and_the_knob_leave_nothing_to_a_pilot() -> None:
    assert wants_pilot(TrainingSettings())
    for knobs in ({"learning_rate": 0.1}, {"tune": "none"}, {"warm_start": "model"}):
        assert not wants_pilot(TrainingSettings(**knobs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_slices", "rows_each", "walked"), [(12, 1500, 4), (12, 1499, 0), (2, 10**6, 0), (3, 1500, 1), (7, 2000, 2)]
)
def test_a_third_of_too_few_rows_tells_nothing(n_slices: int, rows_each: int, walked: int) -> None:
    assert n_pilot_slices(n_slices, rows_each) == walked
