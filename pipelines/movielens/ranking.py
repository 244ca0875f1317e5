"""The order of a user's movies: machines that learn it from pairs of his ratings beside those of the log loss.

A rating of 4 stars or 5 counts as a click, a user is a group. Settings were chosen on ten ratings of every user that
are held out of ua.base, by the AUC within users.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from features import Catalogue, Ratings, users_and_movies
from numpy.typing import NDArray

from dfm.estimators import FMClassifier, FMRanker
from dfm.model.group_auc import group_sums, rows_by_group

LIKED = 4.0
METRICS = ("group_auc", "ndcg_5", "ndcg_10", "mrr")
COMMON = {"early_stopping": False, "schedule": "constant", "tol": 0.0}
OF_PAIRS = {"n_factors": 16, "learning_rate": 0.2, "l2_linear": 0.02, "l2_factors": 0.03, "n_epochs": 10, **COMMON}
OF_ROWS = {"n_factors": 16, "learning_rate": 0.1, "l2_factors": 0.02, "n_epochs": 22, **COMMON}
"""Each the best of some twenty, by the AUC within users."""
MACHINES: dict[str, tuple[Any, dict]] = {
    "linear, log loss": (FMClassifier, {**OF_ROWS, "n_factors": 0}),
    "linear, pairs": (FMRanker, {**OF_PAIRS, "n_factors": 0}),
    "FM, log loss": (FMClassifier, OF_ROWS),
    "FM, pairs": (FMRanker, OF_PAIRS),
}


def order_within_users(scores: NDArray[np.float64], ratings: Ratings) -> dict[str, float]:
    """METRICS of the users who liked some of the movies."""
    liked, users = ratings.stars >= LIKED, ratings.users.astype(np.uint64)
    found = group_sums(rows_by_group(users, scores, liked, np.ones(len(ratings)))).metrics()
    return {name: found[name] for name in METRICS}


def compare(
    train: Ratings, test: Ratings, catalogue: Catalogue, n_members: int, epochs: int | None
) -> dict[str, dict[str, float]]:
    """Metrics of every machine, mean over members that differ in their random numbers, printed as they come."""
    X, X_test = (users_and_movies(train, each, catalogue, 0.0) for each in (train, test))
    liked, found = (train.stars >= LIKED).astype(int), {}
    print(f"{f'order within users, mean of {n_members}':28}{''.join(f'{name:>11}' for name in METRICS)}{'seconds':>9}")
    for name, (kind, settings) in MACHINES.items():
        begin, told = time.perf_counter(), []
        for seed in range(n_members):
            machine = kind(**settings | ({} if epochs is None else {"n_epochs": epochs}), random_state=seed)
            if kind is FMRanker:
                scores = machine.fit(X, liked, train.users).predict(X_test)
            else:
                scores = machine.fit(X, liked).decision_function(X_test)
            told.append(order_within_users(scores, test))
        found[name] = {metric: float(np.mean([each[metric] for each in told])) for metric in METRICS}
        numbers = "".join(f"{value:11.4f}" for value in found[name].values())
        print(f"  {name:26}{numbers}{(time.perf_counter() - begin) / n_members:9.1f}", flush=True)
    return found
