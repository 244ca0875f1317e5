"""Estimators on small data, with their defaults, beside scikit-learn's linear models on standardized columns.

    .venv/bin/python benchmarks/bench_estimators.py [--smoke]

Scores are means of five folds (accuracy; R² for numbers); seconds are of one fit after the kernels are compiled. What
compiling takes in a process that finds nothing on disk, and in one that does, is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from machine import machine_line
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle

import dfm
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier, LinearRegressor

Data = tuple[np.ndarray, np.ndarray]
FIRST_FIT = """
import time
from dfm.estimators import FMClassifier
started = time.perf_counter()
FMClassifier(n_epochs=1).fit([[0.5, 1.0], [1.0, 0.0]], [0, 1])
print(time.perf_counter() - started)
"""


def planted_pairs() -> Data:
    """2,000 rows of ten columns whose label is made of pairs alone: no linear model learns it."""
    rng = np.random.default_rng(0)
    features, factors = rng.normal(size=(2000, 10)), rng.normal(size=(10, 3))
    pairs = 0.5 * ((features @ factors) ** 2 - (features**2) @ (factors**2)).sum(axis=1)
    return features, 100 * pairs + 50 + rng.normal(size=2000)


def sets() -> Iterator[tuple[str, bool, Callable[[], Data]]]:
    """Name, whether labels are classes, and how the data are made."""
    for name in ("breast_cancer", "iris", "wine", "digits"):
        yield name, True, partial(getattr(datasets, f"load_{name}"), return_X_y=True)
    yield "diabetes", False, partial(datasets.load_diabetes, return_X_y=True)
    yield "friedman1", False, partial(datasets.make_friedman1, 2000, noise=1.0, random_state=0)
    yield "planted pairs", False, planted_pairs


def seconds_of_a_fit(estimator: Any, data: Data) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        estimator.fit(*data)
        best = min(best, time.perf_counter() - started)
    return best


def line(name: str, are_classes: bool, data: Data, folds: int) -> str:
    machine, linear = (FMClassifier(), LinearClassifier()) if are_classes else (FMRegressor(), LinearRegressor())
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if are_classes else Ridge())
    scores = [cross_val_score(model, *data, cv=folds).mean() for model in (machine, linear, peer)]
    seconds = seconds_of_a_fit(machine, data)
    return f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} | {seconds:.3f} | {machine.n_iter_} |"


def first_fits() -> tuple[float, float]:
    """Seconds of the first fit of a process: with an empty cache of machine code, and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.dirname(os.path.dirname(dfm.__file__))
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": root}
        command = [sys.executable, "-c", FIRST_FIT]
        runs = [subprocess.run(command, env=environment, capture_output=True, check=True) for _ in range(2)]
    cold, warm = (float(run.stdout) for run in runs)
    return cold, warm


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two sets and two folds, to see that it works")
    smoke = parser.parse_args().smoke
    print(machine_line())
    print("| data | FM | linear | scikit-learn | seconds a fit | epochs |\n|---|---|---|---|---|---|")
    for number, (name, are_classes, make) in enumerate(sets()):
        if not smoke or number in (0, 4):
            print(line(name, are_classes, shuffle(*make(), random_state=0), 2 if smoke else 5), flush=True)
    if not smoke:
        cold, warm = first_fits()
        print(f"first fit of a process: {cold:.1f} s with nothing compiled, {warm:.2f} s with machine code on disk")


if __name__ == "__main__":
    main()
