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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import Contribution, combine_all
from dfm.averaging.plain import TINY, contribute_plain, finish_plain
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices, Touched
from dfm.compilation import compiled, part
from dfm.data.partition import SparsePartition
from dfm.kernels.blocks import Block
from dfm.kernels.contract import Step
from dfm.kernels.cpu.derived_weights import refresh_bias, refresh_rows
from dfm.kernels.tables import Floats, Layout, ParameterTable, allocate, pull, put
from dfm.storage.arrays import read_only

# --- where things stand ---------------------------------------------------------------------------


class Columns(NamedTuple):
    """Columns of records: of tables (`primary`, `state`) and of summands (the rest, -1: absent).

    A number's summand is [a Δ, F × n_states, F² × n_states (if squares), counts]; a vector's the same of vectors. Of a
    block of vectors, all but `lanes`, `vector_states` and `n_vector` are those of the numbers of the same features.
    """

    primary: int
    state: int
    n_states: int
    squares: int
    occurrences: int
    touches: int
    n_number: int
    lanes: int
    vector_states: int
    """State per lane; 0 where the whole vector has one accumulator, in its feature's number record, or none."""
    n_vector: int

    @property
    def is_plain(self) -> bool:
        """Whether records and summands are as in `plain`."""
        numbers = self.primary, self.n_states, self.n_number
        return numbers == (0, 1, 2) and self.n_vector == 2 * self.lanes


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


def columns_of(rule: MergeRule, layout: Layout, block: Block) -> Columns:
    """Places of things in a block's records, and in the summands that a rule makes of them."""
    stepped_by = layout.rule_of(layout.carrier if block.is_vector else block)
    primary, n_states = stepped_by.primary, stepped_by.n_averaged
    has_squares = rule.state_rule.of_squares and n_states > 0
    width = 1 + n_states * (2 if has_squares else 1)
    squares = 1 + n_states if has_squares else -1
    occurrences = touches = -1
    counts = {rule.weighting.per, rule.state_rule.per if n_states else ""}
    if "occurrences" in counts:
        occurrences, width = width, width + 1
    if "touches" in counts:
        touches, width = width, width + 1
    lanes, states = (block.lanes, layout.n_states(block)) if block.is_vector else (0, 0)
    n_vector = lanes * (1 + states * (2 if has_squares else 1))
    return Columns(primary, primary + 1, n_states, squares, occurrences, touches, width, lanes, states, n_vector)


def summand_width(columns: Columns, block: Block) -> int:
    """float32 columns of a block's summands."""
    return columns.n_vector if block.is_vector else columns.n_number


def shares_of(rule: MergeRule) -> Shares:
    """Weighing of what a replica changed, by a rule."""
    return Shares(*(np.float32(number) for number in rule.weighting.share(rule.precision)))


def _weight_divisors(rule: MergeRule, columns: Columns, n_replicas: int) -> Divisors:
    coefficients = rule.weighting.divisor(rule.precision, n_replicas)
    return _divisors(coefficients, rule.weighting.per, columns)


def _accumulator_divisors(rule: MergeRule, columns: Columns, n_replicas: int) -> Divisors:
    return _divisors(rule.state_rule.divisor(n_replicas), rule.state_rule.per, columns)


def _divisors(coefficients: tuple[float, float, float], per: str, columns: Columns) -> Divisors:
    counts = getattr(columns, per) if per else -1
    fixed, history, growth = (np.float32(number) for number in coefficients)
    return Divisors(fixed, history, growth, counts)


# --- map -------------------------------------------------------------------------------------------------


def contribute(rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable) -> Contribution:
    """The summands of one replica whose rows brought the pulled table from `before` to `after`."""
    layout, shares = before.layout, shares_of(rule)
    rule.check_optimizer(layout.optimizer)
    summands: dict[str, Floats] = {}
    for block in layout.touched:
        columns = columns_of(rule, layout, block)
        tables = read_only(before[block.name]), read_only(after[block.name])
        out = summands[block.name] = np.empty((len(tables[0]), summand_width(columns, block)), np.float32)
        if not len(out):
            continue
        if columns.is_plain:
            contribute_plain(block.lanes)(*tables, shares, out)
        elif not block.is_vector:
            occurrences = touched.occurrences() if columns.occurrences >= 0 else np.zeros(0, np.int64)
            _contribute_numbers(tables, read_only(occurrences), columns, shares, out)
        else:
            carrier = layout.carrier.name
            _contribute_vectors(read_only(before[carrier]), tables, summands[carrier], columns, shares, out)
    return Contribution(touched.features, summands, *shared_of(rule, touched, before, after))


def shared_of(
    rule: MergeRule, touched: Touched, before: ParameterTable, after: ParameterTable
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """The summands of a replica that belong to no feature, by block, and the weight of its rows."""
    layout, rows = before.layout, touched.total_weight
    return {
        block.name: rows * growth(columns_of(rule, layout, block), before[block.name], after[block.name])
        for block in layout.shared
    }, rows


def growth(columns: Columns, before: Floats, after: Floats) -> NDArray[np.float64]:
    """Δ of numbers and F of their state, from the records before and after: float64[n_rows, 1 + n_states]."""
    grown = after.astype(np.float64) - before.astype(np.float64)
    wanted = [columns.primary, *range(columns.state, columns.state + columns.n_states)]
    return grown.reshape(-1, before.shape[-1])[:, wanted]


@compiled(error_model="numpy")
def _contribute_numbers(tables, occurrences, columns, shares, out):  # type: ignore[no-untyped-def]
    """Writes `out` float32[m, n_number] from tables before and after, float32[m, width]."""
    before, after = tables
    primary, state_at, n_states = columns.primary, columns.state, columns.n_states
    for row in range(out.shape[0]):
        share = shares.base
        if n_states:
            start = before[row, state_at]
            share += shares.history * start + shares.growth * (after[row, state_at] - start)
        if columns.occurrences >= 0:
            count = np.float32(occurrences[row])
            out[row, columns.occurrences] = count
            share *= count
        out[row, 0] = share * (after[row, primary] - before[row, primary])
        for state in range(n_states):
            grown = after[row, state_at + state] - before[row, state_at + state]
            out[row, 1 + state] = grown
            if columns.squares >= 0:
                out[row, columns.squares + state] = grown * grown
        if columns.touches >= 0:
            out[row, columns.touches] = np.float32(1)


@compiled(error_model="numpy")
def _contribute_vectors(records, tables, summands, columns, shares, out):  # type: ignore[no-untyped-def]
    """Writes `out` float32[m_f, n_vector] from tables before and after, float32[m_f, width].

    records: of the same features' numbers, before; summands: of these.
    """
    before, after = tables
    lanes = np.uint64(columns.lanes)  # without a sign: the loops are made of vector instructions then
    has_own, has_row = columns.vector_states > 0, columns.n_states > 1
    for row in range(out.shape[0]):
        share = shares.base
        if has_row:
            share += shares.history * records[row, columns.state + 1] + shares.growth * summands[row, 2]
        if columns.occurrences >= 0:
            share *= summands[row, columns.occurrences]
        if not has_own:
            for lane in range(lanes):
                out[row, lane] = share * (after[row, lane] - before[row, lane])
            continue
        count = summands[row, columns.occurrences] if columns.occurrences >= 0 else np.float32(1)
        for lane in range(lanes):
            start = before[row, lanes + lane]
            growth = after[row, lanes + lane] - start
            own = count * (shares.base + shares.history * start + shares.growth * growth)
            out[row, lane] = own * (after[row, lane] - before[row, lane])
            out[row, lanes + lane] = growth
        if columns.squares >= 0:
            for lane in range(lanes):
                growth = out[row, lanes + lane]
                out[row, np.uint64(2) * lanes + lane] = growth * growth
        for column in range(2 * columns.lanes, (1 + columns.vector_states) * columns.lanes):  # of several: no squares
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


def finish_of(rule: MergeRule, layout: Layout, block: Block, n_replicas: int) -> Finish:
    """The numbers of a block's merge of so many replicas."""
    columns = columns_of(rule, layout, block)
    return Finish(
        columns,
        _weight_divisors(rule, columns, n_replicas),
        _accumulator_divisors(rule, columns, n_replicas),
        Outer(np.float32(rule.outer_rate), np.float32(rule.outer_momentum)),
    )


class SharedSum(Protocol):
    """The part of summands that belongs to no feature: Δ and F times the rows, and the rows."""

    @property
    def shared(self) -> Mapping[str, NDArray[np.float64]]:
        """By block, float64[n_rows, *]: of the primary column, then of the state."""

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
    settings, from which w is made of merged state where an optimizer does so. momentum: what the last merge of the
    block returned, None before the first one; None is returned where the rule has none. Rows that nobody touched
    keep value and momentum. Shared rows are means by rows, and every part of a table carries them.
    """
    layout, merged, drift = block.layout, block.copy(), _next_momentum(rule, block, momentum)
    features = read_only(contribution.features)
    # Vectors first: what there is once of a vector stands in its feature's record, and its old value is needed.
    for each in reversed(layout.touched):
        summands, records = read_only(contribution.touched[each.name]), merged[each.name]
        if not len(summands):
            continue
        numbers = finish_of(rule, layout, each, n_replicas)
        if numbers.columns.is_plain and not rule.outer_momentum:
            finish_plain(each.lanes)(features, start, summands, numbers, records)
        elif each.is_vector:
            carrier = layout.carrier.name
            both = read_only(contribution.touched[carrier]), summands
            _finish_vectors(features, start, both, numbers, (merged[carrier], records), drift[each.name])
        else:
            _finish_numbers(features, start, summands, numbers, records, drift[each.name])
        if each.is_linear:
            refresh_rows(layout, step, features, start, records)
    for each in layout.shared:
        finish_shared(rule, layout, each, contribution, step, (merged[each.name], drift[each.name]))
    return merged, drift if rule.outer_momentum else None


def _next_momentum(rule: MergeRule, block: ParameterTable, momentum: ParameterTable | None) -> ParameterTable:
    """The table that takes the new momentum, holding the old one; without rows where the rule has none."""
    if not rule.outer_momentum:
        return allocate(block.layout.stateless, 0, 0)
    if momentum is None:
        return allocate(block.layout.stateless, block.n_features, block.n_factored, block.n_fields)
    return momentum.copy()


def finish_shared(
    rule: MergeRule, layout: Layout, block: Block, total: SharedSum, step: Step, arrays: tuple[Floats, Floats]
) -> None:
    """Moves rows that belong to no feature, and their state, by their means over rows, in place; rows without weight
    change nothing.

    total: the sum over all replicas. arrays: the block's records, and their momentum where the rule has one.
    """
    width = layout.width(block)
    records, columns = arrays[0].reshape(-1, width), columns_of(rule, layout, block)
    if total.rows > 0.0:
        means = total.shared[block.name] / total.rows
        move = means[:, 0]
        if rule.outer_momentum:
            drift = arrays[1].reshape(-1)
            drift[:] = rule.outer_momentum * drift.astype(np.float64) + move
            move = move + rule.outer_momentum * drift.astype(np.float64)
        records[:, columns.primary] += (rule.outer_rate * move).astype(np.float32)
        for state in range(columns.n_states):
            records[:, columns.state + state] += means[:, 1 + state].astype(np.float32)
    if block.is_linear:
        refresh_bias(layout, step, records)


@part
def _outer_move(move, outer, drift, row, column):  # type: ignore[no-untyped-def]
    """Nesterov's step from the mean move of a coordinate; updates its momentum in `drift`, in place."""
    if outer.momentum > 0:
        speed = outer.momentum * drift[row, column] + move
        drift[row, column] = speed
        move += outer.momentum * speed
    return outer.rate * move


@part
def _quotient(divisors, summands, position):  # type: ignore[no-untyped-def]
    """The part of a divisor that is one number per feature."""
    return summands[position, divisors.counts] if divisors.counts >= 0 else divisors.fixed


@compiled(error_model="numpy")
def _finish_numbers(features, start, summands, numbers, records, drift):  # type: ignore[no-untyped-def]
    """Moves the touched rows of `records` and `drift`, in place. A divisor of 0 has a numerator of 0."""
    columns, weights, accumulators, outer = numbers
    primary, state_at, n_states = columns.primary, columns.state, columns.n_states
    for position in range(features.size):
        row = np.intp(features[position]) - start
        divisor = _quotient(weights, summands, position)
        if n_states:
            divisor += weights.history * records[row, state_at] + weights.growth * summands[position, 1]
        move = summands[position, 0] / max(divisor, TINY)
        records[row, primary] += _outer_move(move, outer, drift, row, 0)
        per_row = _quotient(accumulators, summands, position)
        for state in range(n_states):
            old, grown = records[row, state_at + state], summands[position, 1 + state]
            divisor = per_row + accumulators.history * old + accumulators.growth * grown
            if columns.squares >= 0:
                grown = grown * old + summands[position, columns.squares + state]
            records[row, state_at + state] = old + grown / max(divisor, TINY)


@part(error_model="numpy")
def _finish_lanes(vectors, summands, quotients, numbers, drift, row, position):  # type: ignore[no-untyped-def]
    """Moves any vector and its state."""
    columns, weights, accumulators, outer = numbers
    lanes, (shared, per_row) = columns.lanes, quotients
    if columns.vector_states == 0:
        shared = max(shared, TINY)
        for lane in range(lanes):
            vectors[row, lane] += _outer_move(summands[position, lane] / shared, outer, drift, row, lane)
        return
    for lane in range(lanes):
        old, growth = vectors[row, lanes + lane], summands[position, lanes + lane]
        divisor = shared + weights.history * old + weights.growth * growth
        vectors[row, lane] += _outer_move(summands[position, lane] / max(divisor, TINY), outer, drift, row, lane)
        divisor = per_row + accumulators.history * old + accumulators.growth * growth
        if columns.squares >= 0:
            growth = growth * old + summands[position, 2 * lanes + lane]
        vectors[row, lanes + lane] = old + growth / max(divisor, TINY)
    for column in range(2 * lanes, (1 + columns.vector_states) * lanes):  # of several sums, which have no squares
        vectors[row, column] += summands[position, column] / max(per_row, TINY)


@compiled(error_model="numpy")
def _finish_vectors(features, start, summands, numbers, tables, drift):  # type: ignore[no-untyped-def]
    """Moves the touched rows of vectors and `drift`, in place. tables: numbers (only read), vectors."""
    columns, weights, accumulators, _ = numbers
    of_numbers, of_vectors = summands
    records, vectors = tables
    for position in range(of_vectors.shape[0]):
        row = np.intp(features[position]) - start
        shared, per_row = _quotient(weights, of_numbers, position), _quotient(accumulators, of_numbers, position)
        if columns.n_states > 1:
            shared += weights.history * records[row, columns.state + 1] + weights.growth * of_numbers[position, 2]
        _finish_lanes(vectors, of_vectors, (shared, per_row), numbers, drift, row, position)


# --- where it is done --------------------------------------------------------------------------------------


class Averaging(Protocol):
    """The work of a round on tables and summands, wherever these lie: in a processor's memory or on a GPU.

    Summands of any kind have the parts `select`, `shared`, `rows` and `nbytes` of a `Contribution`; pickled, they
    arrive as one, and every kind takes these too.
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
