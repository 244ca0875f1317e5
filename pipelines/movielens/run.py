"""Stars for movies: factorization machines on MovieLens-100k beside the published figures.

    python pipelines/movielens/run.py ml-100k

The folder holds ua.base, ua.test, u.item and u.user (how to get them: README.md). ua.test is scored once, at the
end: how the settings below were chosen says tune.py.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import click
import numpy as np
from features import DESIGNS, Catalogue, Ratings, design, read_catalogue, read_ratings, table, users_and_movies
from numpy.typing import NDArray
from plots import plot_errors, plot_movies
from ranking import compare
from scipy import sparse

from dfm.estimators import FMRegressor, LinearRegressor

HERE = Path(__file__).parent
COMMON = {"optimizer": "sgd", "schedule": "final-decay", "early_stopping": False}
ALONE = {
    "n_factors": 32,
    "n_epochs": 80,
    "learning_rate": 0.005,
    "factor_rate_scale": 1.0,
    "l2_linear": 0.1,
    "l2_factors": 0.09,
    "init_stdev": 0.05,
    **COMMON,
}
WITH_SIDE = {**ALONE, "n_epochs": 100, "l2_linear": 0.03}
SETTINGS = dict(zip(DESIGNS, (ALONE, WITH_SIDE, WITH_SIDE), strict=True))
"""The best of tune.py: of 25 trials for user and movie, of 14 with side information, also for the same page."""
LINEAR = {**COMMON, "n_epochs": 80, "learning_rate": 0.005, "l2_linear": 0.03}
EXACT = {"early_stopping": False, "min_count_factors": 1, "numeric": []}
MCMC = {**EXACT, "solver": "mcmc", "n_factors": 16, "n_epochs": 160, "burn_in": 30, "draws": 130}
ALS = {**EXACT, "solver": "als", "n_factors": 8, "n_epochs": 40, "l2_linear": 5.0, "l2_factors": 8.0, "tol": 0.0}
"""The better of k = 8 and 16, and the best of five pairs of penalties, on ratings that are held out of ua.base."""
PUBLISHED = [
    ("linear, Vowpal Wabbit (2016)", 0.9652),
    ("FM, Vowpal Wabbit (2016)", 0.9140),
    ("FM k = 20, Adam, TensorFlow (2017)", 0.9072),
    ("FM, libFM, SGD", 0.889),
    ("FM, libFM, ALS", 0.866),
    ("FM, xLearn", 0.864),
    ("FM, libFM, MCMC", 0.842),
]


def solved(train: Ratings, test: Ratings, catalogue: Catalogue, epochs: int | None) -> list[tuple[str, float, float]]:
    """Name, error and seconds of the exact solvers, a table's columns being their fields, and of myFM if it is here."""
    found = []
    for name, settings, side in (
        ("dfm, ALS, user and movie", ALS, False),
        ("dfm, MCMC, user and movie", MCMC, False),
        ("dfm, MCMC, side information", MCMC, True),
    ):
        begin = time.perf_counter()
        rows, asked = (table(train, each, catalogue, side) for each in (train, test))
        numbers = [column for column in rows if column.startswith("mood")]
        settings = {**settings, "numeric": numbers, "lists": ["genres"] if side else []}
        settings["categorical"] = [column for column in rows if column not in (*numbers, "genres")]
        if epochs is not None:
            settings |= {"n_epochs": epochs} | ({"burn_in": 1} if "draws" in settings else {})
        machine = FMRegressor(**settings).fit(rows, train.stars)
        found.append((name, error(machine.predict(asked).clip(1, 5), test.stars), time.perf_counter() - begin))
    if importlib.util.find_spec("myfm"):
        found.append(_of_myfm(train, test, catalogue, epochs or MCMC["n_epochs"]))
    return found


def _of_myfm(train: Ratings, test: Ratings, catalogue: Catalogue, n_iter: int) -> tuple[str, float, float]:
    import myfm

    begin = time.perf_counter()
    X, X_test = (users_and_movies(train, each, catalogue, 0.0) for each in (train, test))
    sizes = [len(catalogue.ages), len(catalogue.titles)]
    machine = myfm.MyFMRegressor(rank=MCMC["n_factors"])
    machine.fit(X, train.stars, n_iter=n_iter, n_kept_samples=n_iter - n_iter // 5, group_shapes=sizes)
    predicted = machine.predict(X_test).clip(1, 5)
    return "myFM, MCMC, user and movie", error(predicted, test.stars), time.perf_counter() - begin


def members(X: sparse.csr_matrix, stars: NDArray[np.float64], settings: dict, n: int) -> list[FMRegressor]:
    """Machines that differ in their random numbers only."""
    return [FMRegressor(**settings, random_state=seed).fit(X, stars) for seed in range(n)]


def answers(machines: list, X: sparse.csr_matrix) -> list[NDArray[np.float64]]:
    """What every machine predicts, kept between 1 and 5 stars."""
    return [machine.predict(X).clip(1, 5) for machine in machines]


def error(predicted: NDArray[np.float64], stars: NDArray[np.float64]) -> float:
    """Mean squared error."""
    return float(np.mean((predicted - stars) ** 2))


def neighbours(machines: list[FMRegressor], movies: NDArray[np.int64], first: int) -> NDArray[np.float64]:
    """Cosines float64[n, n] between the factors of movies, mean over machines; `first` is the feature of movie 0."""
    total = np.zeros((len(movies), len(movies)))
    for machine in machines:
        V = machine.factors_[first + movies].astype(float)
        V /= np.linalg.norm(V, axis=1, keepdims=True)
        total += V @ V.T
    return total / len(machines)


def show_neighbours(machines: list[FMRegressor], train: Ratings, catalogue: Catalogue, least: int = 100) -> None:
    """The nearest movies of a few, among those that are rated often enough to know."""
    counts = np.bincount(train.movies, minlength=len(catalogue.titles))
    often = np.argsort(-counts, kind="stable")
    often = often[counts[often] >= min(least, int(counts[often[min(50, len(often) - 1)]]))]
    cosines = neighbours(machines, often, len(catalogue.ages))
    print("\nnearest movies by their factors (cosine)")
    wanted = ["Star Wars", "Titanic", "Scream (", "Fargo", "Aladdin (", "Pulp Fiction"]
    for start in wanted:
        for i in (i for i, movie in enumerate(often) if catalogue.titles[movie].startswith(start)):
            near = [j for j in np.argsort(-cosines[i]) if j != i][:3]
            names = ", ".join(f"{catalogue.titles[often[j]]} {cosines[i, j]:.2f}" for j in near)
            print(f"  {catalogue.titles[often[i]]}: {names}")


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--members", "n_members", default=10, help="Machines whose predictions are averaged.")
@click.option("--epochs", default=None, type=int, help="Fewer epochs, for a quick look.")
@click.option("--ranking", is_flag=True, help="The order of each user's movies instead: pairs beside the log loss.")
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of the plots.")
def main(folder: Path, n_members: int, epochs: int | None, ranking: bool, output: Path) -> None:
    """Train on FOLDER/ua.base, predict FOLDER/ua.test."""
    train, test, catalogue = read_ratings(folder / "ua.base"), read_ratings(folder / "ua.test"), read_catalogue(folder)
    print(f"{len(train):,} ratings to train on, {len(test):,} to predict")
    if ranking:
        compare(train, test, catalogue, n_members, epochs)
        return
    print(f"{'mean squared error on ua.test':42}{'one':>8}{f'mean of {n_members}':>12}{'seconds':>9}")
    rows = [(name, value) for name, value in PUBLISHED]
    for name, value in PUBLISHED:
        print(f"  {name:40}{value:8.4f}")
    for number, name in enumerate(DESIGNS):
        begin = time.perf_counter()
        X, X_test = (design(name, train, each, catalogue) for each in (train, test))
        settings = SETTINGS[name] | ({} if epochs is None else {"n_epochs": epochs})
        if number == 0:
            linear = LinearRegressor(**LINEAR).fit(X, train.stars)
            rows.append(("dfm, linear, user and movie", error(answers([linear], X_test)[0], test.stars)))
            print(f"  {rows[-1][0]:40}{rows[-1][1]:8.4f}")
        machines = members(X, train.stars, settings, n_members)
        predicted = answers(machines, X_test)
        one, mean = np.mean([error(p, test.stars) for p in predicted]), error(np.mean(predicted, axis=0), test.stars)
        print(f"  {f'dfm, {name}':40}{one:8.4f}{mean:12.4f}{time.perf_counter() - begin:9.1f}", flush=True)
        rows.append((f"dfm, {name}", mean))
        if number == 0:
            alone = machines
    for name, value, seconds in solved(train, test, catalogue, epochs):
        print(f"  {name:40}{value:8.4f}{'':12}{seconds:9.1f}", flush=True)
        rows.append((name, value))
    show_neighbours(alone, train, catalogue)
    plot_errors(rows, output / "errors.png")
    plot_movies(alone, train, catalogue, output / "movies.png")
    print(f"\nplots: {output / 'errors.png'}, {output / 'movies.png'}")


if __name__ == "__main__":
    main()
