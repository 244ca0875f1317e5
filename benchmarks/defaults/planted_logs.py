"""Planted click logs that differ in everything the defaults were not tuned on; the best possible loss is known.

A row's log-odds are b + Σ w_t + Σ_{s<t} <v_s, v_t> over its tokens t, drawn once from normal distributions; labels are
drawn from them. What a perfect model would lose on the test rows, the Bayes loss, follows from the odds themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_RANK = 4
Tokens = list[NDArray[np.int64]]
"""Per column the tokens of every row, int64[n_rows, n]; -1 where a list is shorter."""


@dataclass(frozen=True)
class PlantedLog:
    """A log on disk. schema: of the job that trains on it; bayes: log loss of the planted odds on the test rows."""

    name: str
    train: str
    test: str
    schema: dict[str, Any]
    bayes: float


@dataclass(frozen=True)
class Plan:
    """sizes: distinct tokens of each column; lengths: most tokens of a row in it (1: a category). linear, pairs:
    deviations of the two parts of the log-odds. drift: how far weights move from the first day to the last.
    """

    sizes: Sequence[int]
    lengths: Sequence[int]
    n_rows: int
    rate: float = 0.2
    linear: float = 0.8
    pairs: float = 0.8
    drift: float = 0.0


PLANS: dict[str, Plan] = {
    "few wide fields": Plan([20_000, 20_000, 300], [1, 1, 1], 60_000),
    "many narrow fields": Plan([6] * 40, [1] * 40, 40_000),
    "lists": Plan([2_000, 50, 50, 50], [10, 1, 1, 1], 40_000),
    "words": Plan([8_000], [40], 20_000, rate=0.3, linear=2.0, pairs=0.6),
    "one in 500": Plan([300] * 8, [1] * 8, 120_000, rate=0.002, linear=1.0),
    "drifting": Plan([200] * 10, [1] * 10, 60_000, drift=1.0),
    "few rows": Plan([30] * 6, [1] * 6, 2_500, linear=1.0),
}


def plant(name: str, folder: Path, seed: int = 0, share: float = 1.0) -> PlantedLog:
    """Write the log of that name below a folder: rows to train on, in ten shards in order of time, and to test on.

    share: of the rows that the plan has.
    """
    plan = PLANS[name]
    rng = np.random.default_rng([seed, list(PLANS).index(name)])
    n_rows = max(int(plan.n_rows * share), 500)
    n_test = max(n_rows // 4, 2_000)
    tokens = [_draw(rng, size, most, n_rows + n_test) for size, most in zip(plan.sizes, plan.lengths, strict=True)]
    odds = _odds(rng, plan, tokens)
    labels = (rng.random(len(odds)) < _sigmoid(odds)).astype(np.int64)
    where = folder / name.replace(" ", "-")
    for number, rows in enumerate(np.array_split(np.arange(n_rows), 10)):
        _write(where / "train" / f"{number}.parquet", tokens, labels, rows, plan)
    test = np.arange(n_rows, n_rows + n_test)
    _write(where / "test" / "0.parquet", tokens, labels, test, plan)
    bayes = float(np.mean(np.logaddexp(0.0, odds[test]) - labels[test] * odds[test]))
    kinds = {"categorical": [f"c{j}" for j, most in enumerate(plan.lengths) if most == 1]}
    kinds["lists"] = [f"c{j}" for j, most in enumerate(plan.lengths) if most > 1]
    schema = {"label": "label", **kinds, **({"time": "hour"} if plan.drift else {})}
    return PlantedLog(name, str(where / "train"), str(where / "test"), schema, bayes)


def _draw(rng: np.random.Generator, size: int, most: int, n_rows: int) -> NDArray[np.int64]:
    """Tokens by a power law, as ids and words are: few are frequent."""
    weights = 1.0 / (np.arange(size) + 2.0) ** 0.8
    drawn = rng.choice(size, (n_rows, most), p=weights / weights.sum())
    if most == 1:
        return drawn
    lengths = rng.integers(max(1, most // 8), most + 1, n_rows)
    return np.where(np.arange(most) < lengths[:, None], drawn, -1)


def _odds(rng: np.random.Generator, plan: Plan, tokens: Tokens) -> NDArray[np.float64]:
    """Log-odds of every row, with an intercept that gives the click rate."""
    n_rows = len(tokens[0])
    time = np.arange(n_rows) / n_rows
    linear, total, squares = np.zeros(n_rows), np.zeros((n_rows, _RANK)), np.zeros((n_rows, _RANK))
    for column, size in zip(tokens, plan.sizes, strict=True):
        weights, moved, vectors = rng.normal(size=size), rng.normal(size=size), rng.normal(size=(size, _RANK))
        there = column >= 0
        x = there / np.sqrt(there.sum(1, keepdims=True))
        found = weights[column] + plan.drift * time[:, None] * moved[column]
        linear += (found * x).sum(1)
        each = vectors[column] * x[:, :, None]
        total += each.sum(1)
        squares += (each**2).sum(1)
    pairs = 0.5 * (total**2 - squares).sum(1)
    odds = plan.linear * linear / linear.std()
    if len(tokens) > 1 or plan.lengths[0] > 1:
        odds += plan.pairs * pairs / pairs.std()
    low, high = -20.0, 20.0
    for _ in range(60):  # the intercept at which the mean probability is the click rate
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(odds + middle).mean() < plan.rate else (low, middle)
    return odds + low


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-odds))


def _write(path: Path, tokens: Tokens, labels: NDArray[np.int64], rows: NDArray[np.int64], plan: Plan) -> None:
    named: Callable[[int, int], str] = "v{}_{}".format
    columns: dict[str, Any] = {"label": labels[rows], "hour": rows // 500}
    for j, column in enumerate(tokens):
        if plan.lengths[j] == 1:
            columns[f"c{j}"] = [named(j, token) for token in column[rows, 0].tolist()]
        else:
            columns[f"c{j}"] = [[named(j, token) for token in row if token >= 0] for row in column[rows].tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
