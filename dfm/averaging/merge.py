"""Merging the replicas' models with pure functions: map (`contribute`), sum (`dfm.averaging.contributions`), finish
(`finalise`).

Notation, per coordinate: w0 and G0 at the start of the round; replica k of W ends at w_k and G_k; Δ_k = w_k −
w0; F_k = G_k − G0 (its sum of squared gradients); t replicas touched the coordinate. Every rule has the form

    w = w0 + Σ_k a_k Δ_k / D        a_k = base + history G0 + growth F_k        (summed over the t replicas)

and likewise for G, so one set of kernels serves all rules, a rule is a handful of numbers, and replicas are
merged by adding records. Additions follow one fixed binary tree over replica numbers: the result has the same
bytes whoever adds what and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dfm.averaging.contributions import Contribution, combine_all
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices, Touched
from dfm.compilation import compiled
from dfm.data.partition import SparsePartition
from dfm.kernels.contract import Step
from dfm.kernels.optimizers import ftrl_weight, rates_of, unpenalised
from dfm.kernels.tables import Floats, Layout, ParameterTable, allocate, pull, put
from dfm.storage.arrays import read_only

# --- where things stand ---------------------------------------------------------------------------


class Columns(NamedTuple):
    """Where things stand in records: of tables (`primary`, `state`) and of summands (the rest, -1: absent).

    A linear summand is [a Δ, F × n_states, F² × n_states (if squares), counts]; a factor summand the same of
    vectors.
    """

    primary: int
    state: int
    n_states: int
    squares: int
    occurrences: int
    touches: int
    n_linear: int
    lanes: int
    factor_states: int
    """State per factor; 0 where the whole row has one accumulator, in the linear record, or none."""
    n_factor: int


class Shares(NamedTuple):
    """a_k = base + history G0 + growth F_k; with `occurrences`, times the feature's occurrences."""

    base: np.float32
    history: np.float32
    growth: np.float32


class Divisors(NamedTuple):
    """D = fixed + history G0 + growth ΣF; the summands' column `counts`, unless -1, in place of fixed."""

    fixed: np.float32
    history: np.float32
    growth: np.float32
    counts: int


_STATE_COLUMNS = {
    "sgd": (0, 1, 0),
    "adagrad": (0, 1, 1),
    "adagrad-row": (0, 1, 2),
    "ftrl": (1, 2, 1),
    "adam": (0, 1, 4),
}
"""Of linear records, by optimizer: column of what is averaged (w; FTRL's z), first of the state, how many."""


def columns_of(rule: MergeRule, layout: Layout) -> Columns:
    """Where things stand in tables of a layout, and in the summands that a rule makes of them."""
    primary, state, n_states = _STATE_COLUMNS[layout.optimizer]
    has_squares = rule.accumulators == "vw" and n_states > 0
    width = 1 + n_states * (2 if has_squares else 1)
    squares = 1 + n_states if has_squares else -1
    occurrences = touches = -1
    if rule.weights == "count":
        occurrences, width = width, width + 1
    if rule.weights == "touched" or (rule.accumulators == "touched" and n_states):
        touches, width = width, width + 1
    factor_states = layout.factor_width // layout.lanes - 1 if layout.lanes else 0
    n_factor = layout.lanes * (1 + factor_states * (2 if has_squares else 1))
    return Columns(
        primary, state, n_states, squares, occurrences, touches, width, layout.lanes, factor_states, n_factor
    )


def shares_of(rule: MergeRule) -> Shares:
    """How a rule weighs what a replica changed."""
    base, history, growth = {"weighted": (0.0, 1.0, 1.0), "precision": (rule.precision, 0.0, 1.0)}.get(
        rule.weights, (1.0, 0.0, 0.0)
    )
    return Shares(np.float32(base), np.float32(history), np.float32(growth))


def _weight_divisors(rule: MergeRule, columns: Columns, n_replicas: int) -> Divisors:
    fixed, history, growth, counts = {
        "mean": (n_replicas, 0, 0, -1),
        "weighted": (0, n_replicas, 1, -1),
        "touched": (0, 0, 0, columns.touches),
        "count": (0, 0, 0, columns.occurrences),
        "precision": (rule.precision, 0, 1, -1),
    }[rule.weights]
    return Divisors(np.float32(fixed), np.float32(history), np.float32(growth), counts)


def _accumulator_divisors(rule: MergeRule, columns: Columns, n_replicas: int) -> Divisors:
    fixed, history, growth, counts = {
        "mean": (n_replicas, 0, 0, -1),
        "vw": (0, n_replicas, 1, -1),
        "touched": (0, 0, 0, columns.touches),
        "sum": (1, 0, 0, -1),
    }[rule.accumulators]
    return Divisors(np.float32(fixed), np.float32(history), np.float32(growth), counts)


# --- map -------------------------------------------------------------------------------------------------


def contribute(rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable) -> Contribution:
    """The summands of one replica whose rows brought the pulled table from `before` to `after`."""
    rule.check_optimizer(before.layout.optimizer)
    columns = columns_of(rule, before.layout)
    linear = np.empty((after.n_features, columns.n_linear), np.float32)
    factors = np.empty((after.n_factored, columns.n_factor), np.float32)
    occurrences = np.zeros(0, np.int64)
    if columns.occurrences >= 0:
        occurrences = touched.occurrences()
    tables = read_only(before.linear), read_only(after.linear)
    _contribute_linear(tables, read_only(occurrences), columns, shares_of(rule), linear)
    if after.n_factored:
        factor_tables = read_only(before.factors), read_only(after.factors)
        _contribute_factors(tables, factor_tables, linear, columns, shares_of(rule), factors)
    rows = touched.total_weight
    return Contribution(touched.features, linear, factors, rows * bias_growth(columns, before.bias, after.bias), rows)


def bias_growth(columns: Columns, before: Floats, after: Floats) -> NDArray[np.float64]:
    """Δ of the bias and F of its state, from its record before and after."""
    growth = after.astype(np.float64) - before.astype(np.float64)
    return growth[[columns.primary, *range(columns.state, columns.state + columns.n_states)]]


@compiled(error_model="numpy")
def _contribute_linear(tables, occurrences, columns, shares, out):  # type: ignore[no-untyped-def]
    """Writes `out` float32[m, n_linear] from tables before and after, float32[m, linear_width]."""
    before, after = tables
    n_states = columns.n_states
    if out.shape[1] == 2 and before.shape[1] == 2:
        # A weight and its sum of squares, the most common record: the same arithmetic without what others need.
        for row in range(out.shape[0]):
            start = before[row, 1]
            growth = after[row, 1] - start
            share = shares.base + (shares.history * start + shares.growth * growth)
            out[row, 0] = share * (after[row, 0] - before[row, 0])
            out[row, 1] = growth
        return
    for row in range(out.shape[0]):
        share = shares.base
        if n_states:
            start = before[row, columns.state]
            share += shares.history * start + shares.growth * (after[row, columns.state] - start)
        if columns.occurrences >= 0:
            count = np.float32(occurrences[row])
            out[row, columns.occurrences] = count
            share *= count
        out[row, 0] = share * (after[row, columns.primary] - before[row, columns.primary])
        for state in range(n_states):
            growth = after[row, columns.state + state] - before[row, columns.state + state]
            out[row, 1 + state] = growth
            if columns.squares >= 0:
                out[row, columns.squares + state] = growth * growth
        if columns.touches >= 0:
            out[row, columns.touches] = np.float32(1)


@compiled(error_model="numpy")
def _contribute_factors(tables, factor_tables, linear, columns, shares, out):  # type: ignore[no-untyped-def]
    """Writes `out` float32[m_f, n_factor] from tables before and after, float32[m_f, factor_width]."""
    before, after = factor_tables
    lanes = columns.lanes
    has_own, has_row = columns.factor_states > 0, columns.n_states > 1
    for row in range(out.shape[0]):
        share = shares.base
        if has_row:
            share += shares.history * tables[0][row, columns.state + 1] + shares.growth * linear[row, 2]
        if columns.occurrences >= 0:
            share *= linear[row, columns.occurrences]
        if not has_own:
            for lane in range(lanes):
                out[row, lane] = share * (after[row, lane] - before[row, lane])
            continue
        count = linear[row, columns.occurrences] if columns.occurrences >= 0 else np.float32(1)
        for lane in range(lanes):
            start = before[row, lanes + lane]
            growth = after[row, lanes + lane] - start
            own = count * (shares.base + shares.history * start + shares.growth * growth)
            out[row, lane] = own * (after[row, lane] - before[row, lane])
            out[row, lanes + lane] = growth
            if columns.squares >= 0:
                out[row, 2 * lanes + lane] = growth * growth
        for column in range(2 * lanes, (1 + columns.factor_states) * lanes):  # Adam's, which has no squares
            out[row, column] = after[row, column] - before[row, column]


# --- finish ----------------------------------------------------------------------------------------------


class Outer(NamedTuple):
    """The outer step: momentum β and rate."""

    rate: np.float32
    momentum: np.float32


class Finish(NamedTuple):
    """All numbers of one merge."""

    columns: Columns
    weights: Divisors
    accumulators: Divisors
    outer: Outer


def finish_of(rule: MergeRule, layout: Layout, n_replicas: int) -> Finish:
    """The numbers of a merge of so many replicas."""
    columns = columns_of(rule, layout)
    return Finish(
        columns,
        _weight_divisors(rule, columns, n_replicas),
        _accumulator_divisors(rule, columns, n_replicas),
        Outer(np.float32(rule.outer_rate), np.float32(rule.outer_momentum)),
    )


class BiasSum(Protocol):
    """The bias' part of summands: Δ and F times the rows, and the rows."""

    @property
    def bias(self) -> NDArray[np.float64]:
        """Of the primary column, then of the state."""

    @property
    def rows(self) -> float:
        """Sum of the weights of the replicas' rows."""


def finalise(
    rule: MergeRule,
    block: ParameterTable,
    start: int,
    contribution: Contribution,
    n_replicas: int,
    step: Step,
    momentum: ParameterTable | None = None,
) -> tuple[ParameterTable, ParameterTable | None]:
    """The block after the round, rows [start, start + block.n_features) of the table, and its momentum, as
    new tables.

    contribution: the sum over all `n_replicas`, restricted to the block by its `select`. step: the replicas'
    settings, from which FTRL's w is made of the merged z and n. momentum: what the last merge of the block
    returned, None before the first one; None is returned where the rule has none. Rows that nobody touched
    keep value and momentum. The bias is the mean by rows, and every block carries it.
    """
    layout = block.layout
    numbers = finish_of(rule, layout, n_replicas)
    merged = block.copy()
    drift = _next_momentum(rule, block, momentum)
    features = read_only(contribution.features)
    linear_summands = read_only(contribution.linear)
    if len(contribution.factors):
        summands = linear_summands, read_only(contribution.factors)
        # Factors first: a row's accumulator stands in the linear record, and its old value is needed.
        _finish_factors(features, start, summands, numbers, (merged.linear, merged.factors), drift.factors)
    _finish_linear(features, start, linear_summands, numbers, merged.linear, drift.linear)
    finish_bias(rule, layout, contribution, step, (merged.bias, drift.bias))
    if layout.optimizer == "ftrl":
        _refresh_rows(features, start, rates_of(step), merged.linear)
    return merged, drift if rule.outer_momentum else None


def _next_momentum(rule: MergeRule, block: ParameterTable, momentum: ParameterTable | None) -> ParameterTable:
    """The table that takes the new momentum, holding the old one; without rows where the rule has none."""
    if not rule.outer_momentum:
        return allocate(block.layout.stateless, 0, 0)
    if momentum is None:
        return allocate(block.layout.stateless, block.n_features, block.n_factored)
    return momentum.copy()


def finish_bias(rule: MergeRule, layout: Layout, total: BiasSum, step: Step, records: tuple[Floats, Floats]) -> None:
    """Moves the bias and its state by their means over rows, in place; rows without weight change nothing.

    total: the sum over all replicas. records: float32[linear_width] of the bias, and [1] of its momentum.
    """
    bias, drift = records
    columns = columns_of(rule, layout)
    if total.rows > 0.0:
        means = total.bias / total.rows
        move = means[0]
        if rule.outer_momentum:
            drift[0] = rule.outer_momentum * float(drift[0]) + move
            move = move + rule.outer_momentum * float(drift[0])
        bias[columns.primary] += np.float32(rule.outer_rate * move)
        for state in range(columns.n_states):
            bias[columns.state + state] += np.float32(means[1 + state])
    if layout.optimizer == "ftrl":
        _refresh_rows(np.zeros(1, np.uint32), 0, unpenalised(rates_of(step)), bias.reshape(1, -1))


_TINY = np.float32(np.finfo(np.float32).tiny)


@njit(nogil=True, inline="always")
def _outer_move(move, outer, drift, row, column):  # type: ignore[no-untyped-def]
    """Nesterov's step from the mean move of a coordinate; updates its momentum in `drift`, in place."""
    if outer.momentum > 0:
        speed = outer.momentum * drift[row, column] + move
        drift[row, column] = speed
        move += outer.momentum * speed
    return outer.rate * move


@njit(nogil=True, inline="always")
def _quotient(divisors, summands, position):  # type: ignore[no-untyped-def]
    """The part of a divisor that is one number per feature."""
    return summands[position, divisors.counts] if divisors.counts >= 0 else divisors.fixed


@compiled(error_model="numpy")
def _finish_linear(features, start, summands, numbers, linear, drift):  # type: ignore[no-untyped-def]
    """Moves the touched rows of `linear` and `drift`, in place. A divisor of 0 has a numerator of 0."""
    columns, weights, accumulators, outer = numbers
    if summands.shape[1] == 2 and linear.shape[1] == 2 and not outer.momentum > 0:
        # A weight and its sum of squares, the most common record: the same arithmetic without what others need.
        for position in range(features.size):
            row = np.intp(features[position]) - start
            old, growth = linear[row, 1], summands[position, 1]
            divisor = weights.fixed + (weights.history * old + weights.growth * growth)
            linear[row, 0] += outer.rate * (summands[position, 0] / max(divisor, _TINY))
            divisor = accumulators.fixed + accumulators.history * old + accumulators.growth * growth
            linear[row, 1] = old + growth / max(divisor, _TINY)
        return
    for position in range(features.size):
        row = np.intp(features[position]) - start
        divisor = _quotient(weights, summands, position)
        if columns.n_states:
            divisor += weights.history * linear[row, columns.state] + weights.growth * summands[position, 1]
        move = summands[position, 0] / max(divisor, _TINY)
        linear[row, columns.primary] += _outer_move(move, outer, drift, row, 0)
        per_row = _quotient(accumulators, summands, position)
        for state in range(columns.n_states):
            old, growth = linear[row, columns.state + state], summands[position, 1 + state]
            divisor = per_row + accumulators.history * old + accumulators.growth * growth
            if columns.squares >= 0:
                growth = growth * old + summands[position, columns.squares + state]
            linear[row, columns.state + state] = old + growth / max(divisor, _TINY)


@compiled(error_model="numpy")
def _finish_factors(features, start, summands, numbers, tables, drift):  # type: ignore[no-untyped-def]
    """Moves the touched rows of the factors and `drift`, in place; tables: linear (only read), factors."""
    columns, weights, accumulators, outer = numbers
    linear_summands, factor_summands = summands
    linear, factors = tables
    lanes = columns.lanes
    for position in range(factor_summands.shape[0]):
        row = np.intp(features[position]) - start
        shared = _quotient(weights, linear_summands, position)
        if columns.n_states > 1:
            shared += weights.history * linear[row, columns.state + 1] + weights.growth * linear_summands[position, 2]
        if columns.factor_states == 0:
            shared = max(shared, _TINY)
            for lane in range(lanes):
                move = factor_summands[position, lane] / shared
                factors[row, lane] += _outer_move(move, outer, drift, row, lane)
            continue
        per_row = _quotient(accumulators, linear_summands, position)
        for lane in range(lanes):
            old, growth = factors[row, lanes + lane], factor_summands[position, lanes + lane]
            divisor = shared + weights.history * old + weights.growth * growth
            move = factor_summands[position, lane] / max(divisor, _TINY)
            factors[row, lane] += _outer_move(move, outer, drift, row, lane)
            divisor = per_row + accumulators.history * old + accumulators.growth * growth
            if columns.squares >= 0:
                growth = growth * old + factor_summands[position, 2 * lanes + lane]
            factors[row, lanes + lane] = old + growth / max(divisor, _TINY)
        for column in range(2 * lanes, (1 + columns.factor_states) * lanes):
            factors[row, column] += factor_summands[position, column] / max(per_row, _TINY)


@compiled(error_model="numpy")
def _refresh_rows(features, start, rates, linear):  # type: ignore[no-untyped-def]
    """Makes FTRL's w of z and n in the given rows, in place: no mean of w has L1's exact zeros."""
    for position in range(features.size):
        row = np.intp(features[position]) - start
        linear[row, 0] = ftrl_weight(linear[row, 1], linear[row, 2], rates)


# --- where it is done --------------------------------------------------------------------------------------


class Averaging(Protocol):
    """What a round does with tables and summands, wherever these lie: in a processor's memory or on a GPU.

    Summands of any kind have the parts `select`, `bias`, `rows` and `nbytes` of a `Contribution`; pickled, they arrive
    as one, and every kind takes these too.
    """

    def unite(self, slices: Sequence[SparsePartition]) -> Slices:
        """See `Slices.of`."""

    def pull(
        self, blocks: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None = None
    ) -> ParameterTable:
        """See `params.pull`."""

    def copy(self, table: ParameterTable) -> ParameterTable:
        """A copy that training may change."""

    def put(self, local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
        """See `params.put`."""

    def contribute(
        self, rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable, halved: bool
    ) -> Any:
        """See `contribute`; halved: with summands rounded to bfloat16."""

    def combine_all(self, contributions: Iterable[Any]) -> Any:
        """See `contributions.combine_all`."""

    def finalise(
        self,
        rule: MergeRule,
        block: ParameterTable,
        start: int,
        contribution: Any,
        n_replicas: int,
        step: Step,
        momentum: ParameterTable | None = None,
    ) -> tuple[ParameterTable, ParameterTable | None]:
        """See `finalise`."""


class OnProcessors:
    """Averaging by the functions of this module, `params` and `contributions`."""

    unite = staticmethod(Slices.of)
    pull = staticmethod(pull)
    put = staticmethod(put)
    combine_all = staticmethod(combine_all)
    finalise = staticmethod(finalise)

    @staticmethod
    def copy(table: ParameterTable) -> ParameterTable:
        """See `ParameterTable.copy`."""
        return table.copy()

    @staticmethod
    def contribute(
        rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable, halved: bool
    ) -> Contribution:
        """See `contribute`."""
        contribution = contribute(rule, touched, before, after)
        return contribution.halved() if halved else contribution
