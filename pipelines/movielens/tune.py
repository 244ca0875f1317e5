"""Chooses the hyperparameters of run.py on ratings held out of ua.base; ua.test is never opened.

    python pipelines/movielens/tune.py ml-100k

Five ratings of every user are held out, as ua.test holds out ten, three times. Every trial draws settings at random and
prints the mean squared error of the mean of four machines.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from features import DESIGNS, Catalogue, Ratings, design, hold_out, read_catalogue, read_ratings
from scipy import sparse

from dfm.estimators import FMRegressor

CHOICES = {
    "n_factors": [8, 16, 32],
    "learning_rate": [0.005, 0.008, 0.012],
    "l2_linear": [0.03, 0.06, 0.1],
    "l2_factors": [0.05, 0.06, 0.07, 0.08, 0.09],
    "init_stdev": [0.05, 0.1, 0.2],
    "n_epochs": [60, 80, 100, 120],
}
Split = tuple[sparse.csr_matrix, np.ndarray, sparse.csr_matrix, np.ndarray]


def splits(name: str, ratings: Ratings, catalogue: Catalogue, n_splits: int) -> list[Split]:
    """Matrices and stars to train on and to judge by."""
    result = []
    for seed in range(n_splits):
        train, held = hold_out(ratings, per_user=5, seed=seed)
        result.append(
            (design(name, train, train, catalogue), train.stars, design(name, train, held, catalogue), held.stars)
        )
    return result


def held_out_error(settings: dict, folds: list[Split], n_members: int) -> float:
    """Mean squared error of the mean of some machines, over the folds."""
    errors = []
    for X, y, X_held, y_held in folds:
        total = np.zeros(len(y_held))
        for seed in range(n_members):
            machine = FMRegressor(**settings, optimizer="sgd", factor_rate_scale=1.0, schedule="final-decay",
                                  early_stopping=False, random_state=seed)  # fmt: skip
            total += machine.fit(X, y).predict(X_held).clip(1, 5)
        errors.append(np.mean((total / n_members - y_held) ** 2))
    return float(np.mean(errors))


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--design", "name", default=DESIGNS[0], type=click.Choice(DESIGNS))
@click.option("--trials", default=25)
@click.option("--members", default=4)
@click.option("--splits", "n_splits", default=3)
@click.option("--seed", default=0)
def main(folder: Path, name: str, trials: int, members: int, n_splits: int, seed: int) -> None:
    """Random search on ratings held out of FOLDER/ua.base."""
    folds = splits(name, read_ratings(folder / "ua.base"), read_catalogue(folder), n_splits)
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        settings = {key: values[rng.integers(len(values))] for key, values in CHOICES.items()}
        print(f"{held_out_error(settings, folds, members):.4f}  {settings}", flush=True)


if __name__ == "__main__":
    main()
