"""One contract, every backend: merged replicas against the definitions in float64, and the laws of a distributed merge.

Definitions are held by processors and by the GPU (its kernels run on a processor, see `host_gpu`; `pytest -m gpu` runs
them on one too), laws by processors alone: what the GPU makes is compared with that byte by byte. Cases come from the
records of merge rules and optimizers. What a GPU's sums take and remember is in test_gpu.py.
"""

from __future__ import annotations

import itertools
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.averaging import contributions
from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.contributions import Contribution, aligned_groups, combine, combine_all
from dfm.averaging.gpu import OnGpu
from dfm.averaging.merge import Averaging, OnProcessors, contribute, finalise
from dfm.averaging.rules import ACCUMULATOR_RULES, WEIGHT_RULES, MergeRule
from dfm.data.partition import SparsePartition
from dfm.errors import SettingsError
from dfm.kernels.contract import Step
from dfm.kernels.gpu.composition import ON_GPU
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import Layout, ParameterTable, allocate, pull
from tests.support import gpu_rounds

N_FEATURES, N_FACTORED = 40, 15
STEP = Step(0.1, 0.1, l2_linear=0.01, l1_linear=0.5)
SUMMING = tuple(name for name, optimizer in OPTIMIZERS.items() if optimizer.weighs_replicas)
"""Optimizers whose state says how much a replica has seen, so that every rule is legal."""
RULES = [
    MergeRule(weights, accumulators, precision=2.0) for weights in WEIGHT_RULES for accumulators in ACCUMULATOR_RULES
]


@dataclass
class Round:
    """One round: the block before it and, by replica, rows, the pulled table and the trained one."""

    block: ParameterTable
    partitions: list[SparsePartition]
    befores: list[ParameterTable]
    afters: list[ParameterTable]

    def contributions(self, rule: MergeRule) -> list[Contribution]:
        return [contribute(rule, *replica) for replica in zip(self.partitions, self.befores, self.afters, strict=True)]

    def merge(self, rule: MergeRule, averaging: Averaging | None = None) -> ParameterTable:
        """The block after the round, merged by a backend; without one by processors."""
        averaging = averaging or OnProcessors()
        replicas = zip(self.partitions, self.befores, self.afters, strict=True)
        total = averaging.combine_all([averaging.contribute(rule, *replica, False) for replica in replicas])
        return averaging.finalise(rule, self.block, 0, total, len(self.partitions), STEP)[0]


def random_table(rng: np.random.Generator, layout: Layout, n_features: int, n_factored: int) -> ParameterTable:
    table = allocate(layout, n_features, n_factored)
    table.bias[:] = rng.uniform(1, 2, table.bias.shape)
    table.linear[:] = rng.uniform(0.5, 2, table.linear.shape)
    table.factors[:] = rng.uniform(0.5, 2, table.factors.shape)
    return table


def train(rng: np.random.Generator, before: ParameterTable) -> ParameterTable:
    """What training does to a table: weights move both ways, accumulators grow."""
    after = before.copy()
    for name in ("bias", "linear", "factors"):
        array = getattr(after, name)
        array += rng.uniform(0.01, 1, array.shape).astype(np.float32)
        weights = array[..., : before.layout.lanes] if name == "factors" else array[..., :1]
        weights -= np.float32(0.5)
    return after


def random_partition(rng: np.random.Generator) -> SparsePartition:
    features = np.sort(rng.choice(N_FEATURES, rng.integers(1, N_FEATURES), replace=False)).astype(np.uint32)
    counts = rng.integers(1, 5, len(features))
    indices = np.repeat(np.arange(len(features), dtype=np.uint32), counts)
    n_rows = int(rng.integers(1, 6))
    indptr = np.linspace(0, len(indices), n_rows + 1).astype(np.int64)
    weights = rng.uniform(0.5, 2, n_rows).astype(np.float32) if rng.random() < 0.5 else np.zeros(0, np.float32)
    n_factored = int(np.searchsorted(features, N_FACTORED))
    return SparsePartition(
        indptr,
        indices,
        np.zeros(0, np.float32),
        np.zeros(n_rows, np.float32),
        weights,
        features,
        n_factored,
        n_rows,
    )


def random_round(seed: int, n_replicas: int, layout: Layout) -> Round:
    rng = np.random.default_rng(seed)
    block = random_table(rng, layout, N_FEATURES, N_FACTORED)
    partitions = [random_partition(rng) for _ in range(n_replicas)]
    befores = [pull([block], partition.features) for partition in partitions]
    return Round(block, partitions, befores, [train(rng, before) for before in befores])


def bytes_of(table: ParameterTable) -> bytes:
    return table.bias.tobytes() + table.linear.tobytes() + table.factors.tobytes()


def contribution_bytes(contribution: Contribution) -> bytes:
    arrays = contribution.features, contribution["linear"], contribution["factors"], contribution["bias"]
    return b"".join(array.tobytes() for array in arrays) + str(contribution.rows).encode()


# --- the definitions, in float64 -----------------------------------------------------------------------


def merged_weights(rule, old, history, new, states, touched, counts):
    """w of the rule for arrays [replica, ...]; untouched replicas hold the old values."""
    delta, growth = new - old, states - history
    if rule.weights == "mean":
        return new.mean(axis=0)
    if rule.weights == "weighted":
        return (states * new).sum(axis=0) / states.sum(axis=0)
    if rule.weights == "touched":
        return old + (delta * touched).sum(axis=0) / touched.sum(axis=0)
    if rule.weights == "count":
        return old + (delta * counts).sum(axis=0) / counts.sum(axis=0)
    weights = (rule.precision + growth) / (rule.precision + growth.sum(axis=0))
    return old + (weights * delta).sum(axis=0)


def merged_states(rule, history, states, touched):
    """G of the rule."""
    growth = (states - history).sum(axis=0)
    if rule.accumulators == "mean":
        return states.mean(axis=0)
    if rule.accumulators == "vw":
        return (states**2).sum(axis=0) / states.sum(axis=0)
    return history + (growth / touched.sum(axis=0) if rule.accumulators == "touched" else growth)


def dense(play: Round, name: str) -> np.ndarray:
    """The table of every replica, float64[replica, row, column]: old values where it touched nothing."""
    old = getattr(play.block, name).astype(np.float64)
    result = np.repeat(old[None], len(play.partitions), axis=0)
    for replica, (partition, after) in enumerate(zip(play.partitions, play.afters, strict=True)):
        trained = getattr(after, name)
        result[replica, partition.features[: len(trained)]] = trained
    return result


def touch_counts(play: Round) -> np.ndarray:
    """float64[replica, row, 1]: occurrences of each feature."""
    counts = np.zeros((len(play.partitions), N_FEATURES, 1))
    for replica, partition in enumerate(play.partitions):
        counts[replica, partition.features, 0] = np.bincount(partition.indices)
    return counts


def expected(rule: MergeRule, play: Round) -> tuple[np.ndarray, np.ndarray]:
    """linear and factors as the rule's definition has them; FTRL's w is left as it was."""
    layout = play.block.layout
    old, new = play.block.linear.astype(np.float64), dense(play, "linear")
    old_v, new_v = play.block.factors.astype(np.float64), dense(play, "factors")
    counts = touch_counts(play)
    touched = (counts > 0).astype(np.float64)
    seen, seen_v = touched.any(axis=(0, 2)), touched.any(axis=(0, 2))[:N_FACTORED]
    linear, factors = old.copy(), old_v.copy()
    primary, state = (1, 2) if layout.optimizer == "ftrl" else (0, 1)
    lanes = layout.lanes
    has_state = layout.optimizer != "sgd"
    with np.errstate(invalid="ignore", divide="ignore"):
        states = new[..., state : state + 1] if has_state else np.ones_like(new[..., :1])
        history = old[:, state : state + 1] if has_state else np.ones_like(old[:, :1])
        weights = merged_weights(rule, old[:, [primary]], history, new[..., [primary]], states, touched, counts)
        linear[seen, primary] = weights[seen, 0]
        for column in range(state, layout.linear_width):
            linear[seen, column] = merged_states(rule, old[:, [column]], new[..., [column]], touched)[seen, 0]
        if layout.factor_width > lanes:
            history, states = old_v[:, lanes:], new_v[..., lanes:]
        elif layout.optimizer == "adagrad-row":
            history, states = old[:N_FACTORED, [2]], new[:, :N_FACTORED, [2]]
        else:
            history, states = np.ones_like(old_v[:, :1]), np.ones_like(new_v[..., :1])
        touched, counts = touched[:, :N_FACTORED], counts[:, :N_FACTORED]
        weights = merged_weights(rule, old_v[:, :lanes], history, new_v[..., :lanes], states, touched, counts)
        factors[seen_v, :lanes] = weights[seen_v]
        if layout.factor_width > lanes:
            factors[seen_v, lanes:] = merged_states(rule, history, states, touched)[seen_v]
    return linear, factors


def is_legal(rule: MergeRule, optimizer: str) -> bool:
    try:
        rule.check_optimizer(optimizer)
    except SettingsError:
        return False
    return True


@pytest.fixture(params=["processors", *gpu_rounds.BOTH])
def averaging(request: pytest.FixtureRequest) -> Averaging:
    """The averaging of every backend that this machine has."""
    return OnProcessors() if request.param == "processors" else gpu_rounds.averaging_on(request.param)


LEGAL = [
    pytest.param(backend, rule, optimizer, id=f"{rule.weights}-{rule.accumulators}-{optimizer}-{backend}", marks=marks)
    for backend, marks in (("processors", ()), ("host", ()), ("cupy", (pytest.mark.gpu,)))
    for rule in RULES
    for optimizer in (OPTIMIZERS if backend == "processors" else ON_GPU)
    if is_legal(rule, optimizer)
]  # fmt: skip


@pytest.mark.parametrize(("averaging", "rule", "optimizer"), LEGAL, indirect=["averaging"])
def test_a_merge_is_what_its_definition_says(averaging, rule, optimizer):
    play = random_round(3, 5, Layout(optimizer, 3))
    merged = play.merge(rule, averaging)
    linear, factors = expected(rule, play)
    first = OPTIMIZERS[optimizer].primary
    np.testing.assert_allclose(merged.linear[:, first:], linear[:, first:], rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(merged.factors, factors, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("rule", RULES[:1] + RULES[4:6], ids=lambda rule: f"{rule.weights}-{rule.accumulators}")
def test_the_bias_is_the_mean_over_rows(averaging, rule):
    play = random_round(5, 6, Layout("adagrad", 2))
    rows = [part.weights.sum(dtype=float) if part.weights.size else part.n_rows for part in play.partitions]
    mean = np.average([after.bias for after in play.afters], axis=0, weights=rows)
    np.testing.assert_allclose(play.merge(rule, averaging).bias, mean, rtol=1e-6)


def test_replicas_whose_rows_weigh_nothing_leave_the_bias(averaging):
    play = random_round(5, 2, Layout("adagrad", 2))
    play.partitions = [replace(part, weights=np.zeros(part.n_rows, np.float32)) for part in play.partitions]
    merged = play.merge(MergeRule(), averaging)
    assert merged.bias.tobytes() == play.block.bias.tobytes()


# --- laws ----------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
layouts = st.builds(Layout, st.sampled_from(SUMMING), st.sampled_from([0, 1, 5, 16]))
rules = st.sampled_from(RULES)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 9), layouts, rules)
def test_rows_that_nobody_touched_keep_their_bytes(seed, n_replicas, layout, rule):
    play = random_round(seed, n_replicas, layout)
    merged = play.merge(rule)
    touched = np.unique(np.concatenate([partition.features for partition in play.partitions]))
    untouched = np.setdiff1d(np.arange(N_FEATURES), touched)
    assert merged.linear[untouched].tobytes() == play.block.linear[untouched].tobytes()
    owners = untouched[untouched < len(merged.factors)]
    assert merged.factors[owners].tobytes() == play.block.factors[owners].tobytes()


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.integers(1, 8),
    layouts,
    st.sampled_from([rule for rule in RULES if rule.weights != "precision"]),
)
def test_averaging_equal_replicas_gives_that_replica(seed, n_replicas, layout, rule):
    play = random_round(seed, 1, layout)
    for name in ("partitions", "befores", "afters"):
        setattr(play, name, getattr(play, name) * n_replicas)
    merged, after, features = play.merge(rule), play.afters[0], play.partitions[0].features
    primary = 1 if layout.optimizer == "ftrl" else 0
    np.testing.assert_allclose(merged.linear[features, primary], after.linear[:, primary], rtol=2e-6, atol=2e-7)
    owners = features[: len(after.factors)]
    lanes = layout.lanes
    np.testing.assert_allclose(merged.factors[owners][:, :lanes], after.factors[:, :lanes], rtol=2e-6, atol=2e-7)
    if rule.accumulators != "sum":
        np.testing.assert_allclose(merged.factors[owners], after.factors, rtol=2e-6, atol=2e-7)
        np.testing.assert_allclose(
            merged.linear[features][:, primary:], after.linear[:, primary:], rtol=2e-6, atol=2e-7
        )


@settings(max_examples=60, deadline=None)
@given(seeds, layouts, rules)
def test_a_round_that_learns_nothing_changes_no_byte(seed, layout, rule):
    if layout.optimizer == "ftrl":
        return  # its w is made anew of z and n, and the random table's w does not belong to them
    play = random_round(seed, 4, layout)
    play.afters = play.befores
    assert bytes_of(play.merge(rule)) == bytes_of(play.block)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 13), st.integers(1, 13), rules)
def test_sums_of_aligned_groups_sum_to_the_same_bytes(seed, n_replicas, most, rule):
    parts = random_round(seed, n_replicas, Layout("adagrad", 2)).contributions(rule)
    groups = aligned_groups(n_replicas, most)
    assert len(groups) <= most
    assert [replica for group in groups for replica in group] == list(range(n_replicas))
    grouped = combine_all(combine_all(parts[replica] for replica in group) for group in groups)
    assert contribution_bytes(grouped) == contribution_bytes(combine_all(parts))


@pytest.mark.parametrize("n_replicas", [1, 2, 3, 7, 8, 9, 16, 17, 23, 24, 32, 40])
@pytest.mark.parametrize("chunk_bytes", [64, contributions._CHUNK_BYTES])
def test_sums_follow_the_tree_by_its_definition(
    n_replicas: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense and recursive: a part that lacks a feature counts as +0."""
    monkeypatch.setattr(contributions, "_CHUNK_BYTES", chunk_bytes)
    layout = Layout("adagrad", 2)
    parts = random_round(5, n_replicas, layout).contributions(MergeRule("weighted"))

    def dense(part: Contribution) -> tuple[np.ndarray, np.ndarray]:
        linear = np.zeros((N_FEATURES, part["linear"].shape[1]), np.float32)
        factors = np.zeros((N_FEATURES, part["factors"].shape[1]), np.float32)
        linear[part.features] = part["linear"]
        factors[part.features[: len(part["factors"])]] = part["factors"]
        return linear, factors

    def tree(some: list[Contribution]) -> tuple[np.ndarray, np.ndarray]:
        if len(some) == 1:
            return dense(some[0])
        middle = 1
        while 2 * middle < len(some):
            middle *= 2
        left, right = tree(some[:middle]), tree(some[middle:])
        return left[0] + right[0], left[1] + right[1]

    total = combine_all(iter(parts))
    assert total.features.tolist() == sorted({feature for part in parts for feature in part.features.tolist()})
    for found, expected in zip(dense(total), tree(parts), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_tree_splits_at_the_largest_power_of_two():
    parts = random_round(1, 7, Layout("adagrad", 2)).contributions(MergeRule())
    first_four = combine(combine(parts[0], parts[1]), combine(parts[2], parts[3]))
    by_hand = combine(first_four, combine(combine(parts[4], parts[5]), parts[6]))
    assert contribution_bytes(combine_all(parts)) == contribution_bytes(by_hand)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), rules)
def test_which_replica_comes_first_matters_only_to_the_last_bits(seed, n_replicas, rule):
    play = random_round(seed, n_replicas, Layout("adagrad", 2))
    order = np.random.default_rng(seed).permutation(n_replicas)
    shuffled = Round(
        play.block, *([values[i] for i in order] for values in (play.partitions, play.befores, play.afters))
    )
    one, other = play.merge(rule), shuffled.merge(rule)
    np.testing.assert_allclose(one.linear, other.linear, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(one.factors, other.factors, rtol=2e-6, atol=1e-6)


def cut(table: ParameterTable, start: int, stop: int) -> ParameterTable:
    """Rows [start, stop) as a block."""
    return ParameterTable(
        table.layout,
        {"bias": table.bias, "linear": table.linear[start:stop], "factors": table.factors[start:stop]},
    ).copy()


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.lists(st.integers(0, N_FEATURES), max_size=4),
    layouts,
    rules,
    st.sampled_from([0.0, 0.5]),
)
def test_cutting_the_table_into_blocks_changes_no_byte(seed, cuts, layout, rule, outer_momentum):
    rule = replace(rule, outer_momentum=outer_momentum)
    play = random_round(seed, 3, layout)
    total = combine_all(play.contributions(rule))
    whole = finalise(rule, play.block, 0, total, 3, STEP)[0]
    bounds = [0, *sorted(cuts), N_FEATURES]
    blocks = [
        finalise(rule, cut(play.block, start, stop), start, total.select(start, stop), 3, STEP)[0]
        for start, stop in itertools.pairwise(bounds)
    ]
    assert np.concatenate([block.linear for block in blocks]).tobytes() == whole.linear.tobytes()
    assert np.concatenate([block.factors for block in blocks]).tobytes() == whole.factors.tobytes()
    assert all(block.bias.tobytes() == whole.bias.tobytes() for block in blocks)


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.integers(0, N_FEATURES),
    st.sampled_from([0, 5, 16]),
    st.sampled_from([rule for rule in RULES if is_legal(rule, "adam")]),
)
def test_blocks_of_adams_state_merge_to_the_same_bytes_and_untouched_rows_keep_theirs(seed, at, n_factors, rule):
    play = random_round(seed, 3, Layout("adam", n_factors))
    total, merged = combine_all(play.contributions(rule)), play.merge(rule)
    blocks = [
        finalise(rule, cut(play.block, start, stop), start, total.select(start, stop), 3, STEP)[0]
        for start, stop in ((0, at), (at, N_FEATURES))
    ]
    assert np.concatenate([block.linear for block in blocks]).tobytes() == merged.linear.tobytes()
    assert np.concatenate([block.factors for block in blocks]).tobytes() == merged.factors.tobytes()
    touched = np.unique(np.concatenate([partition.features for partition in play.partitions]))
    untouched = np.setdiff1d(np.arange(N_FEATURES), touched)
    assert merged.linear[untouched].tobytes() == play.block.linear[untouched].tobytes()


def test_adams_merged_moments_stay_the_mean_of_the_gradients_whoever_saw_them():
    """One of four replicas met a feature, once: m over its count is that gradient, not a quarter of it."""
    play = random_round(8, 4, Layout("adam", 0))
    play.block.linear[:, 1:] = 0.0
    for number, (before, after) in enumerate(zip(play.befores, play.afters, strict=True)):
        before.linear[:, 1:] = 0.0
        after.linear[:, 1:] = np.array([0.1 * 3.0, 0.001 * 9.0, 0.1, 0.001]) * (number == 0)
    features = play.partitions[0].features
    _w, m, v, c1, c2 = play.merge(MergeRule()).linear[features].astype(np.float64).T
    np.testing.assert_allclose(m / c1, 3.0, rtol=1e-6)
    np.testing.assert_allclose(v / c2, 9.0, rtol=1e-6)


def test_inputs_may_be_read_only_and_are_never_changed():
    play = random_round(9, 4, Layout("adagrad", 3))
    rule = MergeRule("weighted", "vw", outer_momentum=0.5)
    momentum = finalise(rule, play.block, 0, combine_all(play.contributions(rule)), 4, STEP)[1]
    parts = [pickle.loads(pickle.dumps(part)) for part in play.contributions(rule)]
    for part in parts:
        for array in (part.features, part["linear"], part["factors"], part["bias"]):
            array.flags.writeable = False
    for table in (play.block, momentum, *play.befores, *play.afters):
        for array in (table.bias, table.linear, table.factors):
            array.flags.writeable = False
    play.contributions(rule)
    merged, moved = finalise(rule, play.block, 0, combine_all(parts), 4, STEP, momentum)
    assert bytes_of(merged) != bytes_of(play.block)
    assert bytes_of(moved) != bytes_of(momentum)


def test_a_replica_without_features_adds_nothing():
    play = random_round(2, 2, Layout("adagrad", 3))
    rule = MergeRule("touched", "touched")
    part = play.contributions(rule)[0]
    nothing = part.select(N_FEATURES, N_FEATURES)
    for total in (combine(part, nothing), combine(nothing, part)):
        assert total["linear"].tobytes() == part["linear"].tobytes()
        assert total["factors"].tobytes() == part["factors"].tobytes()


# --- outer momentum, FTRL -------------------------------------------------------------------------------


def test_outer_momentum_is_nesterovs():
    play = random_round(4, 3, Layout("adagrad", 3))
    rule = MergeRule(outer_rate=0.8, outer_momentum=0.5)
    total = combine_all(play.contributions(rule))
    plain = finalise(MergeRule(), play.block, 0, total, 3, STEP)[0]
    first, momentum = finalise(rule, play.block, 0, total, 3, STEP)
    second, _ = finalise(rule, first, 0, total, 3, STEP, momentum)
    for name, width in (("linear", 1), ("factors", play.block.layout.lanes), ("bias", 1)):
        old = getattr(play.block, name)[..., :width]
        move = getattr(plain, name)[..., :width] - old
        after_one = old + 0.8 * (move + 0.5 * move)
        after_two = after_one + 0.8 * (move + 0.5 * (0.5 * move + move))
        np.testing.assert_allclose(getattr(first, name)[..., :width], after_one, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(getattr(second, name)[..., :width], after_two, rtol=1e-5, atol=1e-6)


def test_merged_ftrl_has_exact_zeros_and_the_w_of_its_z_and_n(averaging):
    play = random_round(6, 4, Layout("ftrl", 2))
    play.block.linear[:, 1] = 0.0
    for before, after in zip(play.befores, play.afters, strict=True):
        before.linear[:, 1] = 0.0
        after.linear[:, 1] = np.linspace(-1.2, 1.2, len(after.linear))
    merged = play.merge(MergeRule(), averaging)
    touched = np.unique(np.concatenate([partition.features for partition in play.partitions]))
    w, z, n = merged.linear[touched].astype(np.float64).T
    shrunk = np.sign(z) * np.maximum(np.abs(z) - STEP.l1_linear, 0)
    np.testing.assert_allclose(
        w, -shrunk / ((np.sqrt(n) + STEP.ftrl_beta) / STEP.learning_rate + STEP.l2_linear), rtol=1e-5
    )
    assert np.any(np.abs(z) <= STEP.l1_linear)
    assert np.all(w[np.abs(z) <= STEP.l1_linear] == 0.0)


def test_an_ftrl_feature_without_any_gradient_stays_finite(averaging):
    play = random_round(7, 2, Layout("ftrl", 2))
    for table in (play.block, *play.befores, *play.afters):
        table.linear[:] = 0.0
    for accumulators in ("mean", "vw"):
        assert not play.merge(MergeRule("weighted", accumulators), averaging).linear.any()


# --- halved records -------------------------------------------------------------------------------------


def made_of(features: np.ndarray, linear: np.ndarray) -> Contribution:
    factors = np.empty((0, 8), np.float32)
    return Contribution(features, {"linear": linear, "factors": factors}, {"bias": np.zeros((1, 2))}, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40))
def test_halved_summands_are_off_by_at_most_a_256th_of_themselves(values: list[float]) -> None:
    linear = np.array(values, np.float32).reshape(-1, 1)
    features = np.arange(len(values), dtype=np.uint32)
    part = made_of(features, linear)
    found = part.halved().whole()["linear"]
    normal = np.abs(linear) >= np.finfo(np.float32).tiny
    assert np.all(np.abs(found - linear)[normal] <= np.abs(linear)[normal] * 2.0**-8)
    assert np.all(np.abs(found)[~normal] <= 2 * np.finfo(np.float32).tiny)
    assert part.halved().nbytes - features.nbytes - 16 == linear.nbytes // 2


def test_halving_keeps_what_is_no_finite_number_and_what_fits() -> None:
    values = np.array([[np.nan], [np.inf], [-np.inf], [1.0], [-0.5], [256.0], [0.0]], np.float32)
    part = made_of(np.arange(7, dtype=np.uint32), values)
    np.testing.assert_array_equal(part.halved().whole()["linear"], values)
    assert part.whole() is part


def test_numbers_between_two_halves_go_to_the_nearest_and_ties_to_the_even_one() -> None:
    exponents = np.array([[1 + 2.0**-8], [1 + 3 * 2.0**-8], [1 + 2.0**-8 + 2.0**-12]], np.float32)
    part = made_of(np.arange(3, dtype=np.uint32), exponents)
    assert part.halved().whole()["linear"].ravel().tolist() == [1.0, 1 + 2.0**-6, 1 + 2.0**-7]


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 9), rules)
def test_sums_of_halved_records_have_the_same_bytes_however_they_are_grouped(
    seed: int, n_replicas: int, most: int, rule: MergeRule
) -> None:
    parts = [part.halved() for part in random_round(seed, n_replicas, Layout("adagrad", 2)).contributions(rule)]
    groups = [[parts[replica] for replica in group] for group in aligned_groups(n_replicas, most)]
    pushes = [group[0] if len(group) == 1 else combine_all(group) for group in groups]
    assert contribution_bytes(combine_all(pushes)) == contribution_bytes(combine_all(parts))
    by_parts = [push.select(0, 17) for push in pushes], [push.select(17, N_FEATURES) for push in pushes]
    joined = [combine_all(part) for part in by_parts]
    whole = combine_all(parts)
    np.testing.assert_array_equal(np.concatenate([part["linear"] for part in joined]), whole["linear"])


# --- the GPU beside the processors: not alike to rounding, but in every byte --------------------------------


EVERY_RULE = [
    (weights, accumulators, optimizer)
    for weights, accumulators, optimizer in itertools.product(WEIGHT_RULES, ACCUMULATOR_RULES, ON_GPU)
    if is_legal(MergeRule(weights, accumulators), optimizer)
]


@pytest.fixture(params=gpu_rounds.BOTH)
def on_gpu(request: pytest.FixtureRequest) -> OnGpu:
    """Averaging on the stand-in, and on a GPU where there is one."""
    return gpu_rounds.averaging_on(request.param)


@pytest.mark.parametrize(("weights", "accumulators", "optimizer"), EVERY_RULE)
def test_every_rule_merges_to_the_bytes_of_the_cpu(
    on_gpu: OnGpu, weights: str, accumulators: str, optimizer: str
) -> None:
    gpu_rounds.compare(on_gpu, MergeRule(weights, accumulators), Layout(optimizer, 5), 3)


def test_only_rules_that_lack_their_accumulators_are_left_out() -> None:
    alike = {name for name, optimizer in ON_GPU.items() if optimizer.state != "means"}
    left_out = {case for case in itertools.product(WEIGHT_RULES, ACCUMULATOR_RULES, alike)} - {*EVERY_RULE}
    assert left_out
    assert left_out == {
        (weights, accumulators, name)
        for weights, accumulators, name in itertools.product(WEIGHT_RULES, ACCUMULATOR_RULES, alike)
        if WEIGHT_RULES[weights].by_accumulators and not ON_GPU[name].weighs_replicas
    }


@pytest.mark.parametrize("n_replicas", [1, 2, 4, 5, 8, 9, 13])
def test_sums_follow_the_tree_of_the_cpu(on_gpu: OnGpu, n_replicas: int) -> None:
    rule, layout = MergeRule("weighted"), Layout("adagrad-row", 12)
    for groups in (aligned_groups(n_replicas, 1), aligned_groups(n_replicas, 4), aligned_groups(n_replicas, 64)):
        gpu_rounds.compare(on_gpu, rule, layout, n_replicas, groups=groups)


@pytest.mark.parametrize("bounds", [[0, gpu_rounds.N_FEATURES], [0, 20, 37, 60, gpu_rounds.N_FEATURES]])
@pytest.mark.parametrize("optimizer", ["adagrad", "ftrl"])
def test_momentum_and_several_blocks_merge_to_the_bytes_of_the_cpu(
    on_gpu: OnGpu, optimizer: str, bounds: list[int]
) -> None:
    rule = MergeRule("mean", outer_rate=1.1, outer_momentum=0.5)
    gpu_rounds.compare(on_gpu, rule, Layout(optimizer, 3), 6, bounds=bounds, n_rounds=3)
    gpu_rounds.compare(on_gpu, rule, Layout(optimizer, 0), 2, bounds=bounds)


@pytest.mark.parametrize("halved", [False, True])
def test_what_travels_and_what_stays_give_the_same_bytes(on_gpu: OnGpu, halved: bool) -> None:
    """Pushes of other workers arrive as contributions, cut or whole; ours are on the device."""
    rule, layout = MergeRule("weighted", "vw"), Layout("adagrad", 6)
    for which in ([], [0], [1, 3], [0, 1, 2, 3]):
        gpu_rounds.compare(
            on_gpu, rule, layout, 7, groups=aligned_groups(7, 4), halved=halved, bounds=[0, 30, gpu_rounds.N_FEATURES],
            travels=which.__contains__,
        )  # fmt: skip


@pytest.mark.parametrize("rule", [MergeRule("weighted"), MergeRule("touched", "vw"), MergeRule("precision")], ids=str)
def test_zeros_of_both_signs_and_the_smallest_numbers_are_those_of_the_cpu(on_gpu: OnGpu, rule: MergeRule) -> None:
    """Divisors of 0 where nothing was learnt, −0 + −0, and numbers below 1e-38, which GPUs may take for 0."""
    layout, everything = Layout("adagrad", 4), np.arange(gpu_rounds.N_FEATURES, dtype=np.uint32)
    table, touch = (
        gpu_rounds.make_table(layout),
        gpu_rounds.Touch(everything, 3.0, np.ones(gpu_rounds.N_FEATURES, np.int64)),
    )
    table.linear[:40] = table.factors[:30] = 0.0
    after = table.copy()
    after.linear[10:20, 0] = after.factors[10:15, :4] = -0.0
    after.linear[20:30] = after.factors[20:30] = 1e-40
    table.linear[50:55, 1], after.linear[50:55, 1] = 2e-41, 3e-41
    results = []
    for averaging in (on_gpu, OnProcessors()):
        parts = [averaging.contribute(rule, touch, table, after, False) for _ in range(3)]
        total = averaging.combine_all(parts)
        merged = averaging.finalise(rule, table, 0, total, 3, gpu_rounds.STEP)[0]
        travelled = pickle.loads(pickle.dumps(total))
        results.append([travelled.features.tobytes()])
        results[-1] += [travelled[name].tobytes() for name in ("linear", "factors", "bias")]
        results[-1] += [merged.linear.tobytes(), merged.factors.tobytes()]
        assert np.isfinite(merged.linear).all()
    assert results[0] == results[1]
    assert np.signbit(after.linear[10, 0])


def test_a_block_that_is_summed_in_pieces_has_the_same_bytes(on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_averaging, "CHUNK_BYTES", 4 * 3 * 13)
    gpu_rounds.compare(on_gpu, MergeRule("weighted"), Layout("adagrad-row", 4), 6, groups=aligned_groups(6, 2))


def test_pulled_rows_put_rows_and_copies_are_those_of_the_cpu(on_gpu: OnGpu) -> None:
    table = gpu_rounds.make_table(Layout("adagrad", 6))
    features = np.array([0, 3, 19, 20, 36, 37, 59, 60, 89], np.uint32)
    places = np.array([1, 4, 7], np.uint32)
    results = []
    for averaging in (on_gpu, OnProcessors()):
        local = averaging.pull(gpu_rounds.blocks_of(table, [0, 20, 60, gpu_rounds.N_FEATURES]), features, 5)
        part = gpu_rounds.learn(pickle.loads(pickle.dumps(averaging.pull([local], places, 2))), 5)
        copied = averaging.copy(local)
        averaging.put(part, places, local)
        results.append([local, copied])
    gpu_rounds.assert_same(*results)
    with pytest.raises(IndexError, match="feature 90 is beyond the table's 90 rows"):
        on_gpu.pull([table], np.array([90], np.uint32))
    with pytest.raises(IndexError, match="feature 40 is beyond the 37 rows that own factors"):
        on_gpu.pull([table], np.array([1, 40], np.uint32), 2)
