"""Penalties that adapt to held-out rows (SGDA, Rendle 2012) against one penalty for all, on MovieLens-100k.

    .venv/bin/python benchmarks/solvers/bench_adaptive_penalties.py --movielens DIR [--smoke]

DIR holds `ua.base` and `ua.test`. A plain FM with k = 8 of user and movie, stochastic gradient descent in float64, nine
tenths of `ua.base` to train on, a tenth to adapt penalties, or to choose them, and to stop by. As in libFM, a step of
the parameters alternates with one of the penalties: of w for users and for movies, and of each of their factors.
Printed: squared error on the tenth, and on `ua.test` at the epoch that the tenth chose; means of three seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine_line

N_USERS, N_MOVIES, N_FACTORS, RATE = 943, 1682, 8, 0.01


@numba.njit
def step(w, v, rows, label, bias, l2_w, l2_v):  # type: ignore[no-untyped-def]
    """A step of the parameters; returns the error before it."""
    i, j = rows
    error = bias + w[i] + w[j] + (v[i] * v[j]).sum() - label
    for f in range(N_FACTORS):
        of_user, of_movie = v[i, f], v[j, f]
        v[i, f] -= RATE * (error * of_movie + l2_v[0, f] * of_user)
        v[j, f] -= RATE * (error * of_user + l2_v[1, f] * of_movie)
    w[i] -= RATE * (error + l2_w[0] * w[i])
    w[j] -= RATE * (error + l2_w[1] * w[j])
    return error


@numba.njit
def adapt(w, v, rows, label, bias, l2_w, l2_v):  # type: ignore[no-untyped-def]
    """A step of the penalties: down the slope of the squared error of a held-out row after the next step."""
    i, j = rows
    error = bias + w[i] + w[j] + (v[i] * v[j]).sum() - label
    for group, row in enumerate((i, j)):
        l2_w[group] = max(0.0, l2_w[group] + 2 * RATE * error * RATE * w[row])
        for f in range(N_FACTORS):
            l2_v[group, f] = max(0.0, l2_v[group, f] + 2 * RATE * error * RATE * v[i, f] * v[j, f])


@numba.njit
def squared_error(w, v, pairs, labels, bias):  # type: ignore[no-untyped-def]
    """The mean, of predictions within the range of ratings."""
    total = 0.0
    for row in range(len(labels)):
        i, j = pairs[row]
        total += (min(5.0, max(1.0, bias + w[i] + w[j] + (v[i] * v[j]).sum())) - labels[row]) ** 2
    return total / len(labels)


@numba.njit
def train(rows, held_out, test, penalties, n_epochs, adapts, rng):  # type: ignore[no-untyped-def]
    """float64[n_epochs, 2]: errors on the held-out rows and the test after each epoch; and the penalties at the end."""
    w, v = np.zeros(N_USERS + N_MOVIES), rng.normal(0, 0.1, (N_USERS + N_MOVIES, N_FACTORS))
    l2_w, l2_v = np.full(2, penalties[0]), np.full((2, N_FACTORS), penalties[1])
    bias, found = rows[1].mean(), np.zeros((n_epochs, 2))
    for epoch in range(n_epochs):
        for row in rng.permutation(len(rows[1])):
            bias -= RATE * step(w, v, rows[0][row], rows[1][row], bias, l2_w, l2_v)
            if adapts and epoch:
                other = rng.integers(0, len(held_out[1]))
                adapt(w, v, held_out[0][other], held_out[1][other], bias, l2_w, l2_v)
        found[epoch, 0] = squared_error(w, v, held_out[0], held_out[1], bias)
        found[epoch, 1] = squared_error(w, v, test[0], test[1], bias)
    return found, l2_w, l2_v


def tell(what: str, parts: tuple[Any, Any, Any], penalties: tuple[float, float], n_epochs: int, adapts: bool) -> None:
    """Print a line."""
    chosen, numbers = [], ""
    for seed in (1, 2, 3):
        found, l2_w, l2_v = train(*parts, penalties, n_epochs, adapts, np.random.default_rng(seed))
        chosen.append(found[found[:, 0].argmin()])
        numbers = f"; in the end w {l2_w.round(3)}, V {l2_v.mean(1).round(3)}" if adapts else ""
    held_out, test = np.mean(chosen, 0)
    print(
        f"{what} w {penalties[0]:g}, V {penalties[1]:g}: held out {held_out:.4f}, test {test:.4f}{numbers}", flush=True
    )


def parts_of(folder: Path | None) -> tuple[Any, Any, Any]:
    """Rows to train on, held-out rows, rows to test on: pairs of users and movies, and ratings. None: made-up ones."""
    rng = np.random.default_rng(0)
    read = []
    for name in ("ua.base", "ua.test"):
        ratings = (
            np.loadtxt(folder / name, dtype=np.int64)
            if folder
            else np.stack([rng.integers(1, most, 300) for most in (N_USERS, N_MOVIES, 6)], 1)
        )
        pairs = np.stack([ratings[:, 0] - 1, N_USERS + ratings[:, 1] - 1], 1)
        read.append((pairs, ratings[:, 2].astype(np.float64)))
    order = rng.permutation(len(read[0][1]))
    tenth, rest = np.split(order, [len(order) // 10])
    return (read[0][0][rest], read[0][1][rest]), (read[0][0][tenth], read[0][1][tenth]), read[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movielens", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny and made up: does it still run?")
    arguments = parser.parse_args()
    if not arguments.movielens and not arguments.smoke:
        print("nothing measured: --movielens DIR names the folder of ua.base and ua.test")
        return
    print(machine_line())
    parts, n_epochs = parts_of(None if arguments.smoke else arguments.movielens), 1 if arguments.smoke else 60
    for penalty_w in (0.03, 0.05, 0.08):
        for penalty_v in (0.08, 0.1, 0.12):
            tell("fixed", parts, (penalty_w, penalty_v), n_epochs, adapts=False)
    for penalties in ((0.0, 0.0), (0.03, 0.08)):
        tell("adaptive, from", parts, penalties, n_epochs, adapts=True)


if __name__ == "__main__":
    main()
