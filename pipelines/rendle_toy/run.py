"""The example of the paper that introduced factorization machines: seven ratings, learnt by name.

    python pipelines/rendle_toy/run.py

Rendle, S.: Factorization Machines, ICDM 2010, figure 1. A row is a rating: who, which movie, which other movies he has
rated, when, and the last movie he rated before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer

from dfm.estimators import FMRegressor

HERE = Path(__file__).parent
TITLES = {"TI": "Titanic", "NH": "Notting Hill", "SW": "Star Wars", "ST": "Star Trek"}
RATED = {"Alice": ("TI", "NH", "SW"), "Bob": ("SW", "ST"), "Charlie": ("TI", "SW")}
RATINGS: list[tuple[str, str, int, str, int]] = [
    # user, movie, month since January 2009, last movie rated before, stars
    ("Alice", "TI", 13, "", 5),
    ("Alice", "NH", 14, "TI", 3),
    ("Alice", "SW", 16, "NH", 1),
    ("Bob", "SW", 5, "", 4),
    ("Bob", "ST", 8, "SW", 5),
    ("Charlie", "TI", 9, "", 1),
    ("Charlie", "SW", 12, "TI", 5),
]
PUBLISHED = 0.60


def row(user: str, movie: str, month: int, last: str) -> dict[str, float]:
    """The features of one rating, by name. Months count as a share of a year, so that all columns are near 1."""
    features = {f"user {user}": 1.0, f"movie {TITLES[movie]}": 1.0, "time": month / 12}
    features |= {f"rated {TITLES[other]}": 1 / len(RATED[user]) for other in RATED[user]}
    return features | ({f"last {TITLES[last]}": 1.0} if last else {})


def train(n_epochs: int) -> tuple[FMRegressor, list[str], NDArray[np.float64], NDArray[np.float64]]:
    """The machine, the names of its features, the stars and what it answers."""
    vectorizer = DictVectorizer()
    X = vectorizer.fit_transform([row(*rating[:4]) for rating in RATINGS])
    y = np.array([rating[4] for rating in RATINGS], float)
    machine = FMRegressor(n_factors=4, n_epochs=n_epochs, learning_rate=0.1, tol=0.0, random_state=1).fit(X, y)
    return machine, [str(name) for name in vectorizer.get_feature_names_out()], y, machine.predict(X)


def plot(machine: FMRegressor, names: list[str], path: Path) -> None:
    """The error by epoch; the weights w by name; the interactions <V_i, V_j> of users and movies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=(1, 1.1, 1.1))
    _plot_errors(axes[0], machine.history_)
    order = np.argsort(machine.coef_)
    axes[1].barh([names[j] for j in order], machine.coef_[order], color="C0")
    axes[1].axvline(0, color="0.3", linewidth=0.8)
    axes[1].set(title=f"w by name (w0 = {machine.intercept_:.2f})", xlabel="stars")
    for side in axes[:2]:
        side.spines[["top", "right"]].set_visible(False)
    users, movies = _interactions(machine, names)
    pairs = users[1] @ movies[1].T
    largest = np.abs(pairs).max()
    image = axes[2].imshow(pairs, cmap="RdBu", vmin=-largest, vmax=largest)
    axes[2].set_xticks(range(len(movies[0])), movies[0], rotation=20)
    axes[2].set_yticks(range(len(users[0])), users[0])
    for i, j in np.ndindex(pairs.shape):
        shade = "white" if abs(pairs[i, j]) > 0.6 * largest else "black"
        axes[2].text(j, i, f"{pairs[i, j]:+.2f}", ha="center", va="center", color=shade)
    axes[2].set_title("⟨V_user, V_movie⟩, stars")
    figure.colorbar(image, ax=axes[2], shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_errors(axes: Any, history: list[dict[str, Any]]) -> None:
    errors = [epoch["train_rmse"] ** 2 for epoch in history]
    axes.plot(range(1, len(errors) + 1), errors, color="C0", label="dfm")
    axes.axhline(PUBLISHED, color="C1", linestyle="--", linewidth=1, label=f"TensorFlow, 2017: {PUBLISHED:.2f}")
    axes.axhline(0.05, color="0.5", linestyle=":", linewidth=1, label="0.05")
    axes.set(title="Error on the seven rows", xlabel="epoch", ylabel="mean squared error", yscale="log")
    axes.legend(frameon=False)


def _interactions(machine: FMRegressor, names: list[str]) -> list[tuple[list[str], NDArray[np.float32]]]:
    """Names and factors of the users, then of the movies."""
    groups = []
    for kind in ("user ", "movie "):
        chosen = [j for j, name in enumerate(names) if name.startswith(kind)]
        groups.append(([names[j].removeprefix(kind) for j in chosen], machine.factors_[chosen]))
    return groups


@click.command(context_settings={"show_default": True})
@click.option("--epochs", default=200)
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of the plot.")
def main(epochs: int, output: Path) -> None:
    """Learn the seven ratings, and show what was learnt by name."""
    machine, names, y, predicted = train(epochs)
    print(f"{'user':9}{'movie':15}{'stars':>6}{'dfm':>7}")
    for rating, answer in zip(RATINGS, predicted, strict=True):
        print(f"{rating[0]:9}{TITLES[rating[1]]:15}{rating[4]:6}{answer:7.2f}")
    print(f"\n{'training error':24}{'MSE':>8}")
    print(f"{'always the mean':24}{y.var():8.4f}")
    print(f"{'TensorFlow, 2017':24}{PUBLISHED:8.4f}")
    print(f"{'dfm':24}{np.mean((predicted - y) ** 2):8.4f}")
    print(f"\n{'feature':20}{'w':>7}   V")
    print(f"{'(everywhere)':20}{machine.intercept_:+7.2f}")
    for name, weight, factors in zip(names, machine.coef_, machine.factors_, strict=True):
        print(f"{name:20}{weight:+7.2f}   {' '.join(f'{factor:+.2f}' for factor in factors)}")
    plot(machine, names, output / "rendle_toy.png")
    print(f"\nplot: {output / 'rendle_toy.png'}")


if __name__ == "__main__":
    main()
