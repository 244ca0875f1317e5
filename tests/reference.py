"""A factorization machine by its definition: float64, loops over pairs, nothing shared with dfm. Slow, obviously right.

Tests compare every kernel with this file. It also makes the small random rows that they run on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Sparse rows with the attributes of a partition; rows from `n_implicit` on store their values."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    n_implicit: int
    fields: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    """The field of each feature, or empty."""
    ends: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    group_ids: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """The group of each row, or empty."""

    def entries(self, row: int) -> list[tuple[int, float]]:
        """(feature, value) pairs of a row."""
        start, stop = int(self.indptr[row]), int(self.indptr[row + 1])
        skipped = int(self.indptr[self.n_implicit])
        return [
            (int(self.indices[i]), 1.0 if row < self.n_implicit else float(self.values[i - skipped]))
            for i in range(start, stop)
        ]

    def weight(self, row: int) -> float:
        """Weight of a row."""
        return float(self.weights[row]) if len(self.weights) else 1.0


def random_rows(
    n_rows: int, n_features: int, longest: int, *, n_implicit: int, seed: int = 0, weighted: bool = False
) -> Rows:
    """Rows of 0 to `longest` distinct features, labels 0 and 1; frequent features are the low ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, n_rows)
    popularity = 1.0 / np.arange(1, n_features + 1)
    popularity /= popularity.sum()
    drawn = [rng.choice(n_features, length, replace=False, p=popularity) for length in lengths]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Rows(
        indptr,
        np.concatenate([np.zeros(0, np.int64), *drawn]).astype(np.uint32),
        rng.normal(size=int(indptr[-1] - indptr[n_implicit])).astype(np.float32),
        (rng.random(n_rows) < 0.4).astype(np.float32),
        rng.integers(0, 4, n_rows).astype(np.float32) if weighted else np.zeros(0, np.float32),
        n_implicit,
    )


@dataclass
class Machine:
    """Parameters in float64: bias, linear [n_features], factors [n_factored, k]; `state` is the optimizer's.

    A field-weighted machine also has the `fields` of its features and a strength for each pair of them, (low, high).
    A field-aware one has the group of each feature, `groups`, and in V a vector of each for any group, one by one.
    A higher-order one has in V a vector for each of `degrees`, numbers of features that meet; so has a polynomial
    network (is_network), whose vectors are the sides of products in which features meet themselves, too.
    """

    bias: float
    linear: NDArray[np.float64]
    factors: NDArray[np.float64]
    state: dict[tuple[object, ...], float] = field(default_factory=dict)
    fields: NDArray[np.uint16] | None = None
    strengths: dict[tuple[int, int], float] = field(default_factory=dict)
    groups: list[int] | None = None
    degrees: tuple[int, ...] = ()
    is_network: bool = False

    def score(self, entries: list[tuple[int, float]]) -> float:
        """w0 + Σ w_j x_j + Σ_{i<j} r_{F(i)F(j)} <V_i, V_j> x_i x_j, the last over features that own factors.

        A factorization machine has r = 1. A field-aware one has V_{i,g(j)} in place of V_i, and V_{j,g(i)} of V_j.
        With degrees, the last term is the sum of products over all sets of so many features, or all tuples.
        """
        total = self.bias + sum(self.linear[j] * x for j, x in entries)
        if self.degrees:
            return float(total + self.products(entries))
        for (i, x_i), (j, x_j) in self.pairs(entries):
            product = float(self.factors[i][self.meeting(j)] @ self.factors[j][self.meeting(i)])
            total += self.strength(i, j) * product * x_i * x_j
        return float(total)

    def products(self, entries: list[tuple[int, float]]) -> float:
        """Σ over every choice of features that own factors of the product of their numbers and values."""
        sides = self.sides(entries)
        if self.is_network:
            every = itertools.product(range(len(sides)), repeat=len(self.degrees))
            return float(sum_of_products(list(sides.transpose(1, 0, 2)), every).sum())
        return sum(
            float(sum_of_products([sides[:, at]] * degree, itertools.combinations(range(len(sides)), degree)).sum())
            for at, degree in enumerate(self.degrees)
        )

    def sides(self, entries: list[tuple[int, float]]) -> NDArray[np.float64]:
        """V_j x_j of the entries that own factors, [n, vectors of a feature, k]."""
        owners = [self.factors[j] * x for j, x in entries if j < len(self.factors)]
        return np.array(owners).reshape(len(owners), len(self.degrees), self.factors.shape[1] // len(self.degrees))

    def others(self, j: int, entries: list[tuple[int, float]]) -> NDArray[np.float64]:
        """What V_j x_j is multiplied with in `products`, number by number: every choice of others beside it."""
        sides = self.sides(entries)
        if self.is_network:
            found = [
                sum_of_products(
                    [sides[:, s] for s in range(len(self.degrees)) if s != t],
                    itertools.product(range(len(sides)), repeat=len(self.degrees) - 1),
                )
                for t in range(len(self.degrees))
            ]
            return np.concatenate(found)
        owners = [i for i, _ in entries if i < len(self.factors)]
        rest = [at for at, i in enumerate(owners) if i != j]
        return np.concatenate(
            [
                sum_of_products([sides[:, at]] * (degree - 1), itertools.combinations(rest, degree - 1))
                for at, degree in enumerate(self.degrees)
            ]
        )

    def meeting(self, j: int) -> slice:
        """Which numbers of its V another feature uses beside feature j."""
        if self.groups is None:
            return slice(None)
        n_factors = self.factors.shape[1] // (1 + max(self.groups))
        return slice(self.groups[j] * n_factors, (self.groups[j] + 1) * n_factors)

    def pairs(self, entries: list[tuple[int, float]]) -> Iterable[tuple[tuple[int, float], tuple[int, float]]]:
        """Pairs of entries that own factors."""
        return itertools.combinations([(j, x) for j, x in entries if j < len(self.factors)], 2)

    def pair(self, i: int, j: int) -> tuple[int, int]:
        """The fields of two features."""
        assert self.fields is not None
        low, high = sorted((int(self.fields[i]), int(self.fields[j])))
        return low, high

    def strength(self, i: int, j: int) -> float:
        """r of two features."""
        return 1.0 if self.fields is None else self.strengths[self.pair(i, j)]


def sum_of_products(sides: list[NDArray[np.float64]], places: Iterable[tuple[int, ...]]) -> NDArray[np.float64]:
    """Σ over tuples of places of Π_t sides[t][place t], float64[k]."""
    chosen = np.array(list(places), np.int64).reshape(-1, len(sides))
    return np.prod([side[chosen[:, t]] for t, side in enumerate(sides)], axis=0).sum(axis=0)


@dataclass(frozen=True)
class Rule:
    """How the reference learns: names and numbers as in the kernels' spec and step."""

    loss: str = "logistic"
    optimizer: str = "adagrad"
    learning_rate: float = 0.1
    factor_learning_rate: float = 0.1
    l2_linear: float = 0.0
    l2_factors: float = 0.0
    l1_linear: float = 0.0
    ftrl_beta: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    rmsprop_decay: float = 0.99
    initial_accumulator: float = 1.0
    loss_parameter: float = 0.0
    strength_rate: float = 0.1
    """Step size of strengths under AdaGrad."""
    strength_pull: float = 1e-4
    """L2 on what a strength is away from 1."""
    penalty_slope: Callable[[float], float] = float
    """Derivative of the penalty of one weight: w, of w² / 2."""
    l2_scales: NDArray[np.float64] | None = None
    """What l2_linear and l2_factors are multiplied with, float64[n_features, 2]."""

    def l2(self, j: int) -> tuple[float, float]:
        """l2_linear and l2_factors of a feature."""
        of_linear, of_factors = (1.0, 1.0) if self.l2_scales is None else self.l2_scales[j]
        return of_linear * self.l2_linear, of_factors * self.l2_factors


def loss_of(rule: Rule, score: float, label: float) -> float:
    """The loss by its textbook formula; labels 0 and 1 where they are classes."""
    error, parameter = score - label, rule.loss_parameter
    if rule.loss == "squared":
        return 0.5 * error**2
    if rule.loss == "hinge":
        return max(0.0, 1.0 - (2.0 * label - 1.0) * score)
    if rule.loss == "squared-hinge":
        return max(0.0, 1.0 - (2.0 * label - 1.0) * score) ** 2
    if rule.loss == "poisson":
        return math.exp(score) - label * score
    if rule.loss == "quantile":
        return max(-parameter * error, (1.0 - parameter) * error)
    if rule.loss == "huber":
        return 0.5 * error**2 if abs(error) <= parameter else parameter * (abs(error) - 0.5 * parameter)
    signed = score if label else -score
    return max(-signed, 0.0) + math.log1p(math.exp(-abs(score)))


def slope_of(rule: Rule, score: float, label: float) -> float:
    """Derivative of the loss by the score."""
    error, parameter = score - label, rule.loss_parameter
    if rule.loss == "squared":
        return error
    if rule.loss == "hinge":
        sign = 2.0 * label - 1.0
        return -sign if sign * score < 1.0 else 0.0
    if rule.loss == "squared-hinge":
        sign = 2.0 * label - 1.0
        return -2.0 * sign * max(0.0, 1.0 - sign * score)
    if rule.loss == "poisson":
        return math.exp(score) - label
    if rule.loss == "quantile":
        return -parameter if error < 0 else 1.0 - parameter
    if rule.loss == "huber":
        return error if abs(error) <= parameter else math.copysign(parameter, error)
    return 1.0 / (1.0 + math.exp(-score)) - label


def train(machine: Machine, rows: Rows, order: Iterable[int], rule: Rule, seed: int = 0) -> float:
    """Learns from the rows in that order, in place; sum of the weighted losses before each update.

    Strengths of n fields learn from one row in n, or in n + 1 where n is even; which one comes first says the seed.
    """
    total = 0.0
    between = max((pair[1] + 1 for pair in machine.strengths), default=1) | 1
    for position, row in enumerate(order):
        entries, weight, label = rows.entries(row), rows.weight(row), float(rows.labels[row])
        score = machine.score(entries)
        total += weight * loss_of(rule, score, label)
        between_steps = between if (position - seed) % between == 0 else 0
        _step(machine, entries, weight, slope_of(rule, score, label), rule, between_steps)
    return total


def train_pairs(machine: Machine, rows: Rows, pairs: Iterable[tuple[int, int]], rule: Rule) -> float:
    """Learns from pairs of a clicked and an unclicked row, in place; sum of the weighted losses before each update.

    The loss of a pair is that of the difference of both scores and a label of 1, its weight that of the clicked row.
    Each feature of either row makes one step, down the gradient of that loss and one penalty.
    """
    total = 0.0
    for clicked, unclicked in pairs:
        both, weight = (dict(rows.entries(clicked)), dict(rows.entries(unclicked))), rows.weight(clicked)
        difference = pair_difference(machine, rows, clicked, unclicked)
        total += weight * loss_of(rule, difference, 1.0)
        slope, before = slope_of(rule, difference, 1.0), machine.factors.copy()

        def by_factors(entries: dict[int, float], j: int, before: NDArray[np.float64] = before) -> NDArray[np.float64]:
            others = (before[i] * x for i, x in entries.items() if i != j and i < len(before))
            return entries.get(j, 0.0) * sum(others, 0.0 * before[j])

        for j in both[0] | both[1]:
            by_linear = both[0].get(j, 0.0) - both[1].get(j, 0.0)
            gradient = weight * slope * by_linear
            machine.linear[j] = _linear_step(machine, j, machine.linear[j], gradient, weight, rule)
            if j < len(before):
                by_pair = by_factors(both[0], j) - by_factors(both[1], j)
                machine.factors[j] -= _factor_step(
                    machine, j, weight * (slope * by_pair + rule.l2(j)[1] * before[j]), rule
                )
    return total


def pair_difference(machine: Machine, rows: Rows, clicked: int, unclicked: int) -> float:
    """By how much the first row scores higher than the second."""
    return machine.score(rows.entries(clicked)) - machine.score(rows.entries(unclicked))


def _step(
    machine: Machine, entries: list[tuple[int, float]], weight: float, slope: float, rule: Rule, between: int
) -> None:
    """between: rows from one step of strengths to the next; 0: they are not stepped in this row."""
    if weight == 0.0:
        return
    before = machine.factors.copy()
    strengths = dict(machine.strengths)
    of_all = {j: machine.others(j, entries) for j, _ in entries if machine.degrees and j < len(before)}
    machine.bias = _linear_step(machine, "bias", machine.bias, weight * slope, 0.0, rule)
    for j, x in entries:
        machine.linear[j] = _linear_step(machine, j, machine.linear[j], weight * slope * x, weight, rule)
    if machine.fields is not None and between:
        _strength_steps(machine, entries, (weight, slope), rule, between)
    for j, x in entries:
        if j >= len(before):
            continue
        others = of_all[j] if machine.degrees else 0.0 * before[j]
        for i, x_i in entries:
            if i != j and i < len(before) and not machine.degrees:
                strength = strengths[machine.pair(i, j)] if strengths else 1.0
                others[machine.meeting(i)] += strength * before[i][machine.meeting(j)] * x_i
        gradient = weight * (slope * x * others + rule.l2(j)[1] * np.array([rule.penalty_slope(v) for v in before[j]]))
        machine.factors[j] = before[j] - _factor_step(machine, j, gradient, rule)


def _strength_steps(
    machine: Machine, entries: list[tuple[int, float]], weight_and_slope: tuple[float, float], rule: Rule, between: int
) -> None:
    """Every pair of fields in the row makes one step, by the sum over its pairs of entries.

    AdaGrad begins with a tenth of its usual accumulator and has a rate of its own; it also steps what FTRL and AdaGrad
    by rows do not. Steps are as much longer as makes up for the rows between them.
    """
    weight, slope = weight_and_slope
    gradients: dict[tuple[int, int], float] = {}
    for (i, x_i), (j, x_j) in machine.pairs(entries):
        pair = machine.pair(i, j)
        product = float(machine.factors[i] @ machine.factors[j]) * x_i * x_j
        gradients[pair] = gradients.get(pair, 0.0) + weight * slope * product
    by_root = rule.optimizer in ("adagrad", "ftrl", "adagrad-row")
    lone = dataclasses.replace(
        rule,
        optimizer="adagrad" if by_root else rule.optimizer,
        learning_rate=rule.strength_rate * between**0.5 if by_root else rule.learning_rate * between,
        initial_accumulator=0.1 * rule.initial_accumulator,
    )
    for pair, gradient in gradients.items():
        gradient += weight * rule.strength_pull * (machine.strengths[pair] - 1.0)
        machine.strengths[pair] = _linear_step(machine, ("r", pair), machine.strengths[pair], gradient, 0.0, lone)


def _linear_step(machine: Machine, key: object, value: float, gradient: float, penalised: float, rule: Rule) -> float:
    if rule.optimizer == "ftrl":
        return _ftrl_step(machine, key, value, gradient, rule)
    if penalised and isinstance(key, (int, np.integer)):
        gradient += penalised * rule.l2(int(key))[0] * rule.penalty_slope(value)
    if rule.optimizer == "sgd":
        return value - rule.learning_rate * gradient
    if rule.optimizer == "adam":
        return value - rule.learning_rate * _adam_direction(machine, ("w", key), gradient, rule)
    if rule.optimizer == "rmsprop":
        return value - rule.learning_rate * _rmsprop_direction(machine, ("w", key), gradient, rule)
    total = machine.state.get(("G", key), rule.initial_accumulator) + gradient**2
    machine.state["G", key] = total
    return value - rule.learning_rate * gradient / math.sqrt(total)


def _ftrl_step(machine: Machine, key: object, value: float, gradient: float, rule: Rule) -> float:
    """McMahan et al. 2013, algorithm 1. The bias has no penalty."""
    z, n = machine.state.get(("z", key), 0.0), machine.state.get(("n", key), 0.0)
    z += gradient - (math.sqrt(n + gradient**2) - math.sqrt(n)) / rule.learning_rate * value
    n += gradient**2
    machine.state["z", key], machine.state["n", key] = z, n
    l1, l2 = (0.0, 0.0) if key == "bias" else (rule.l1_linear, rule.l2_linear)
    if abs(z) <= l1:
        return 0.0
    return -(z - math.copysign(l1, z)) / ((rule.ftrl_beta + math.sqrt(n)) / rule.learning_rate + l2)


def _adam_direction(machine: Machine, key: tuple[object, ...], gradient: float, rule: Rule) -> float:
    """Kingma and Ba 2015, algorithm 1, for one coordinate whose steps t are those that touched it."""
    m, v, t = (machine.state.get((name, key), 0.0) for name in ("m", "v", "t"))
    m = rule.adam_beta1 * m + (1.0 - rule.adam_beta1) * gradient
    v = rule.adam_beta2 * v + (1.0 - rule.adam_beta2) * gradient**2
    t += 1.0
    machine.state["m", key], machine.state["v", key], machine.state["t", key] = m, v, t
    unbiased = m / (1.0 - rule.adam_beta1**t), v / (1.0 - rule.adam_beta2**t)
    return unbiased[0] / (math.sqrt(unbiased[1]) + rule.adam_epsilon)


def _rmsprop_direction(machine: Machine, key: tuple[object, ...], gradient: float, rule: Rule) -> float:
    """Tieleman and Hinton 2012, lecture 6.5; the mean begins at initial_accumulator."""
    mean = machine.state.get(("rms", key), rule.initial_accumulator)
    mean = rule.rmsprop_decay * mean + (1.0 - rule.rmsprop_decay) * gradient**2
    machine.state["rms", key] = mean
    return gradient / math.sqrt(mean)


def _factor_step(machine: Machine, j: int, gradient: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    rate = rule.factor_learning_rate
    if rule.optimizer == "sgd":
        return rate * gradient
    if rule.optimizer == "adam":
        return rate * np.array([_adam_direction(machine, ("V", j, f), g, rule) for f, g in enumerate(gradient)])
    if rule.optimizer == "rmsprop":
        return rate * np.array([_rmsprop_direction(machine, ("V", j, f), g, rule) for f, g in enumerate(gradient)])
    if rule.optimizer == "adagrad-row":
        total = machine.state.get(("row", j), rule.initial_accumulator) + float(np.mean(gradient**2))
        machine.state["row", j] = total
        return rate * gradient / math.sqrt(total)
    step = np.empty_like(gradient)
    for f, slope in enumerate(gradient):
        total = machine.state.get(("V", j, f), rule.initial_accumulator) + float(slope) ** 2
        machine.state["V", j, f] = total
        step[f] = rate * float(slope) / math.sqrt(total)
    return step


def platt(scores: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """Slope and intercept of the line through scores with the least log loss of Platt's smoothed labels (1999)."""
    z, y = np.asarray(scores, float), np.asarray(labels)
    n_up, n_down = int(y.sum()), int((1 - y).sum())
    targets = np.where(y == 1, (n_up + 1) / (n_up + 2), 1 / (n_down + 2))

    def loss(line: np.ndarray) -> float:
        logits = line[0] * z + line[1]
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    found = scipy.optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12})
    return float(found.x[0]), float(found.x[1])


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The rising least-squares fit by its min-max formula (Robertson, Wright and Dykstra 1988)."""
    y, w = np.asarray(values, float), np.asarray(weights, float)

    def mean(start: int, stop: int) -> float:
        return float((y[start : stop + 1] * w[start : stop + 1]).sum() / w[start : stop + 1].sum())

    n = len(y)
    return [max(min(mean(start, stop) for stop in range(i, n)) for start in range(i + 1)) for i in range(n)]


@dataclass
class Sampler:
    """A factorization machine of dense rows X [n_rows, n_features] as libFM solves it, one number after the other
    (Rendle 2012): w0 ~ N(0, 1); w and each factor of a group ~ N(μ, 1 / λ), μ ~ N(0, 1 / λ), λ ~ Gamma(½, ½);
    y ~ N(score, 1 / α), α ~ Gamma(½, ½), or y = 1 where a latent number ~ N(score, 1) is above 0.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    groups: Sequence[int]
    n_factors: int
    is_probit: bool
    rng: np.random.Generator
    units: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        n_features = self.X.shape[1]
        self.bias, self.alpha = 0.0, 1.0
        self.values = self.rng.normal(scale=0.1, size=(n_features, self.n_factors + 1))  # V, then w
        self.means = np.zeros((1 + max(self.groups), self.n_factors + 1))
        self.precisions = np.ones_like(self.means)

    def scores(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of dense rows."""
        V = self.values[:, :-1]
        pairs = ((X @ V) ** 2 - X**2 @ V**2).sum(axis=1)
        return self.bias + X @ self.values[:, -1] + 0.5 * pairs

    def derivative(self, j: int, f: int) -> NDArray[np.float64]:
        """By how much scores change with one number, in which they are linear."""
        x = self.X[:, j]
        return x if f == self.n_factors else x * (self.X @ self.values[:, f] - x * self.values[j, f])

    def iterate(self) -> None:
        """Draw everything once."""
        targets = self._latent() if self.is_probit else self.y
        residuals = targets - self.scores(self.X)
        if not self.is_probit:
            self.alpha = self.rng.gamma(0.5 * (1 + len(self.y))) / (0.5 * (1 + residuals @ residuals))
        self._draw_hyperparameters()
        precision = self.alpha * len(self.y) + 1.0
        mean = self.alpha * (residuals.sum() + len(self.y) * self.bias) / precision
        self.bias = float(self.rng.normal(mean, precision**-0.5))
        for j, f in itertools.product(range(self.X.shape[1]), range(self.n_factors + 1)):
            h, group = self.derivative(j, f), self.groups[j]
            rest = targets - self.scores(self.X) + h * self.values[j, f]
            precision = self.precisions[group, f] + self.alpha * h @ h
            mean = (self.precisions[group, f] * self.means[group, f] + self.alpha * h @ rest) / precision
            self.values[j, f] = self.rng.normal(mean, precision**-0.5)

    def _latent(self) -> NDArray[np.float64]:
        scores, signs = self.scores(self.X), np.where(self.y > 0.5, 1.0, -1.0)
        below = scipy.stats.norm.cdf(-signs * scores)
        uniform = below + (1 - below) * self.rng.random(len(scores))
        return scores + signs * scipy.stats.norm.ppf(np.clip(uniform, 1e-300, 1 - 1e-16))

    def _draw_hyperparameters(self) -> None:
        for group, f in itertools.product(range(len(self.means)), range(self.n_factors + 1)):
            own = self.values[np.array(self.groups) == group, f]
            mu, n = self.means[group, f], len(own)
            unit = self.units[f < self.n_factors]  # of w, and of V
            rate = 0.5 * (unit**2 + ((own - mu) ** 2).sum() + mu**2)
            self.precisions[group, f] = self.rng.gamma(0.5 * (2 + n)) / rate
            deviation = ((n + 1) * self.precisions[group, f]) ** -0.5
            self.means[group, f] = self.rng.normal(own.sum() / (n + 1), deviation)


def least_squares(machine: Machine, rows: Rows, order: Iterable[int], l2_linear: float, l2_factors: float) -> None:
    """One iteration of alternating least squares in place: w0, then w and V of each feature in the order given, each
    the exact minimum of Σ weight error² + l2 (its squares) given all others.
    """
    entries = [rows.entries(row) for row in range(len(rows.labels))]
    weights = np.array([rows.weight(row) for row in range(len(rows.labels))])

    def errors() -> NDArray[np.float64]:
        return rows.labels.astype(float) - np.array([machine.score(each) for each in entries])

    machine.bias += float(weights @ errors() / weights.sum())
    for j in order:
        owned = machine.factors[j] if j < len(machine.factors) else np.zeros(0)
        penalties = np.array([l2_linear, *[l2_factors] * len(owned)])

        def put(values: NDArray[np.float64], j: int = j, owned: NDArray[np.float64] = owned) -> None:
            machine.linear[j], owned[:] = values[0], values[1:]

        put(np.zeros(len(penalties)))
        rest = errors()
        slopes = []
        for unit in np.eye(len(penalties)):
            put(unit)
            slopes.append(rest - errors())
        H = np.array(slopes)
        put(np.linalg.solve(H * weights @ H.T + np.diag(penalties), H * weights @ rest))


def drift(now: Sequence[object], then: Sequence[object], min_count: int) -> dict[str, float]:
    """Shares of missing, rare and never seen values among `now`, of missing and rare ones in training (`then`), and the
    population stability index over missing, pooled, each of the 20 most frequent training values, and all others.
    """
    seen = Counter(value for value in then if value is not None)
    kept = [value for value, n in seen.most_common() if n >= min_count]

    def kind(value: object) -> object:
        if value is None:
            return "missing"
        if value not in seen:
            return "unseen"
        return ("top", value) if value in kept[:20] else "other" if value in kept else "rare"

    shares = [{k: n / len(values) for k, n in Counter(map(kind, values)).items()} for values in (now, then)]
    pooled = [{("rare" if k == "unseen" else k): 0.0 for k in each} for each in shares]
    for each, into in zip(shares, pooled, strict=True):
        for k, share in each.items():
            into["rare" if k == "unseen" else k] += share
    psi = 0.0
    for k in pooled[0].keys() | pooled[1].keys():
        a, b = (max(each.get(k, 0.0), 1e-4) for each in pooled)
        psi += (a - b) * math.log(a / b)
    told = {k: shares[0].get(k, 0.0) for k in ("missing", "rare", "unseen")}
    return {**told, **{f"training_{k}": shares[1].get(k, 0.0) for k in ("missing", "rare")}, "psi": psi}


def from_the_top(scores: Sequence[float], labels: Sequence[float], k: int) -> tuple[float, float]:
    """NDCG of the first k rows of a group, and 1 / place of its first clicked row: means over all orders of its rows in
    which no score stands behind a lower one.
    """
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[i] >= scores[j] for i, j in itertools.pairwise(order))
    ]

    def gain(gains: Iterable[float]) -> float:
        return sum(each / math.log2(2 + place) for place, each in enumerate(gains) if place < k)

    found = [gain(labels[i] for i in order) for order in orders]
    ranks = [1 / (1 + next(place for place, i in enumerate(order) if labels[i] >= 0.5)) for order in orders]
    return float(np.mean(found)) / gain(sorted(labels, reverse=True)), float(np.mean(ranks))
