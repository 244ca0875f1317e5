"""A matrix of which some entries are missing, completed twice: by a plain Python loop, and by dfm.

    python pipelines/matrix_completion/run.py

The loop is the gradient descent of a well-known tutorial: 5,000 sweeps, step size 0.0002, penalty 0.02. dfm
minimises the same sum of squares and penalties, and stops when its error is no larger.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import dfm

HERE = Path(__file__).parent
STARS = np.array(
    [
        [5, 3, 0, 1],
        [4, 0, 0, 1],
        [1, 1, 0, 5],
        [1, 0, 0, 4],
        [0, 1, 5, 4],
    ],
    float,
)
"""Five users, four movies, 0 where nothing is known: the tutorial's table."""
STEPS, ALPHA, BETA, SMALL = 5000, 0.0002, 0.02, 0.001
"""Sweeps, step size and penalty of the tutorial, and the objective at which it stops early."""


Curve = list[tuple[float, float]]
"""Seconds since the start, root mean squared error on the known entries."""


@dataclass(frozen=True)
class Run:
    """P [m, k] Q [k, n], how it came down, and how long it took (seconds)."""

    product: NDArray[np.float64]
    curve: Curve
    seconds: float
    rounds: int


def gradient_descent(D: NDArray[np.float64], n_factors: int, steps: int, seed: int) -> Run:
    """The tutorial's way: entry by entry, factor by factor.

    Of every known entry (i, j), e = D[i, j] − P[i] · Q[:, j], and every factor steps along 2 e Q[f, j] − beta P[i, f],
    respectively 2 e P[i, f] − beta Q[f, j]. After every sweep the objective is summed up, to stop when it is small.
    """
    rng = np.random.default_rng(seed)
    P, Q = rng.random((D.shape[0], n_factors)), rng.random((n_factors, D.shape[1]))
    known = np.argwhere(~np.isnan(D)).tolist()
    curve: Curve = []
    begin = time.perf_counter()
    for step in range(steps):
        for i, j in known:
            missed = D[i, j] - np.dot(P[i], Q[:, j])
            for f in range(n_factors):
                p, q = P[i, f], Q[f, j]
                P[i, f] = p + ALPHA * (2 * missed * q - BETA * p)
                Q[f, j] = q + ALPHA * (2 * missed * p - BETA * q)
        total = 0.0
        for i, j in known:
            total += (D[i, j] - np.dot(P[i], Q[:, j])) ** 2
            for f in range(n_factors):
                total += BETA / 2 * (P[i, f] ** 2 + Q[f, j] ** 2)
        if step % 50 == 0 or step == steps - 1 or total < SMALL:
            curve.append((time.perf_counter() - begin, rmse(P @ Q, D)))
        if total < SMALL:
            break
    return Run(P @ Q, curve, curve[-1][0], step + 1)


def by_dfm(D: NDArray[np.float64], n_factors: int, n_epochs: int, repeats: int = 5) -> Run:
    """dfm on the same objective; the fastest of some repeats, after the kernels were compiled."""
    scale = float(np.sqrt(np.nanmean(D**2)))
    settings = {"learning_rate": 1.0, "l2": BETA / 2 / scale, "tol": 0.0, "seed": 1}
    dfm.matrix_factorization(D, n_factors, n_epochs=1)
    seconds = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        done = dfm.matrix_factorization(D, n_factors, n_epochs=n_epochs, **settings)
        seconds = min(seconds, time.perf_counter() - begin)
    rounds = len(done.history)
    # The error of an epoch is taken while it learns, so it belongs to what the epoch before it left.
    curve = [(seconds * (epoch["epoch"] - 1) / rounds, epoch["train_rmse"]) for epoch in done.history[1:]]
    return Run(done.complete(), curve, seconds, rounds)


def as_good(D: NDArray[np.float64], n_factors: int, enough: float) -> Run:
    """dfm with the fewest epochs whose error is at most `enough`."""
    for n_epochs in range(1, 200):
        if rmse(by_dfm(D, n_factors, n_epochs, repeats=1).product, D) <= enough:
            break
    return by_dfm(D, n_factors, n_epochs)


def rmse(product: NDArray[np.float64], D: NDArray[np.float64]) -> float:
    """Root mean squared error on the known entries."""
    return float(np.sqrt(np.nanmean((product - D) ** 2)))


def planted(m: int, n: int, rank: int, share: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A matrix of a low rank with numbers from 0 to about 5; the same with all but `share` of its entries missing."""
    rng = np.random.default_rng(seed)
    whole = rng.random((m, rank)) @ rng.random((rank, n)) * (5 / rank)
    return whole, np.where(rng.random((m, n)) < share, whole, np.nan)


def plot(D: NDArray[np.float64], loop: Run, machine: Run, longer: Run, table: Run, path: Path) -> None:
    """How the error falls by seconds; the tutorial's table, completed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1.3, 1))
    left.plot(*zip(*loop.curve, strict=True), color="C1", label="gradient descent in a loop")
    left.plot(*zip(*longer.curve, strict=True), color="C0", alpha=0.4, label="dfm, 100 epochs")
    left.plot(*zip(*machine.curve, (machine.seconds, rmse(machine.product, D)), strict=True), color="C0", label="dfm")
    left.axhline(loop.curve[-1][1], color="0.6", linewidth=0.8, linestyle=":")
    for run, color, place in ((loop, "C1", (0, 9)), (machine, "C0", (9, 6))):
        point = (run.seconds, rmse(run.product, D))
        left.plot(*point, "o", color=color)
        where = {"xytext": place, "textcoords": "offset points", "ha": "left" if run is machine else "right"}
        left.annotate(f"{run.seconds:.2g} s", point, color=color, **where)
    left.legend(frameon=False, loc="lower right")
    left.set(xscale="log", yscale="log", xlabel="seconds", ylabel="RMSE on the known entries")
    left.set(title="Planted matrix, 60 % missing")
    left.spines[["top", "right"]].set_visible(False)
    right.imshow(table.product, cmap="Blues", vmin=0, vmax=7)
    for i, j in np.ndindex(STARS.shape):
        missing, shade = STARS[i, j] == 0, "white" if table.product[i, j] > 4.5 else "black"
        style = {"color": shade, "fontstyle": "italic" if missing else "normal"}
        right.text(j, i, f"{table.product[i, j]:.1f}{'*' if missing else ''}", ha="center", va="center", **style)
    right.set(
        xlabel="movie", ylabel="user", xticks=range(4), yticks=range(5), title="The tutorial's table (* was missing)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command(context_settings={"show_default": True})
@click.option("--steps", default=STEPS, help="Sweeps of the loop.")
@click.option("--size", default=(30, 20), type=(int, int), help="Rows and columns of the planted matrix.")
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of the plot.")
def main(steps: int, size: tuple[int, int], output: Path) -> None:
    """Complete the tutorial's table and a planted matrix, and compare time and error."""
    whole, part = planted(*size, rank=3, share=0.4, seed=0)
    cases = [
        ("the tutorial's 5 x 4 table, k = 2", np.where(STARS > 0, STARS, np.nan), 2, None),
        (f"planted {size[0]} x {size[1]}, rank 3, 60 % missing", part, 3, whole),
    ]
    print(f"{'':42}{'RMSE':>8}{'on all':>8}{'rounds':>8}{'seconds':>10}{'share':>9}")
    runs = []
    for name, D, n_factors, truth in cases:
        loop = gradient_descent(D, n_factors, steps, seed=1)
        machine, longer = as_good(D, n_factors, rmse(loop.product, D)), by_dfm(D, n_factors, 100)
        print(name)
        for who, run in (("gradient descent in a loop", loop), ("dfm", machine), ("dfm, 100 epochs", longer)):
            everywhere = "" if truth is None else f"{rmse(run.product, truth):.4f}"
            print(
                f"  {who:40}{rmse(run.product, D):8.4f}{everywhere:>8}{run.rounds:8,}{run.seconds:10.4f}"
                f"{run.seconds / loop.seconds:9.3%}"
            )
        runs.append((loop, machine, longer))
    plot(part, *runs[1], runs[0][2], output / "matrix_completion.png")
    print(f"\nplot: {output / 'matrix_completion.png'}")


if __name__ == "__main__":
    main()
