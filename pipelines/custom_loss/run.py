"""A loss of one's own, two lines of Python, on the click log of the demo.

    python pipelines/custom_loss/run.py

dfm derives the slope by itself and compiles both; nobody works out a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import dfm
from dfm.data import synthetic

HERE = Path(__file__).parent
COST = 4.0
"""What a missed click costs, in false alarms."""


def missed_clicks_cost_more(score: float, y: float) -> float:
    """Log loss, in which a click weighs COST times as much as its absence."""
    margin = score if y > 0.5 else -score
    return (COST if y > 0.5 else 1.0) * math.log1p(math.exp(-margin))


def click_log(folder: Path, rows: int) -> tuple[str, pa.Table]:
    """The demo's log below `folder`: its last day, and the rows of that day."""
    truth = synthetic.generate(folder, rows=rows, days=8, overwrite=True)
    last = truth.days[-1].day
    shards = sorted((folder / f"day={last}").glob("*.parquet"))
    return last, pa.concat_tables([pq.ParquetFile(shard).read() for shard in shards])


def job(log: Path, day: str, epochs: int, workers: int) -> dict[str, dict[str, Any]]:
    """The demo's job, on the log until `day`; everything lies beside the log."""
    return {
        "data": {"train": str(log), "validation_from": day},
        "schema": {"label": "label", "time": "day", "numeric": ["I*"], "categorical": ["C*"]},
        "model": {"n_factors": 8, "hash_bits": 20},
        "training": {"n_replicas": 8, "n_epochs": epochs, "early_stopping": False},
        "cluster": {"workers": workers, "cache": str(log.parent / "cache")},
        "output": {"directory": str(log.parent / "run"), "resume": False},
    }


def answers(
    tables: dict[str, Any], loss: str | Callable[..., Any], rows: pa.Table, client: Any = None
) -> NDArray[np.float64]:
    """Train a job with a loss, on the cluster of `client` if there is one; probabilities float64[n_rows] of a click."""
    result = dfm.train(tables, client, loss=loss)
    return dfm.FMModel.load(result.model_url).predict(rows).astype(float)


def recalibrated(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability behind the answers of the changed loss, whose best answer has COST times the odds of a click."""
    return p / (p + COST * (1 - p))


def measures(p: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, float]:
    """What a table shows of answers p; a row counts as a click above 0.5."""
    from sklearn.metrics import log_loss, roc_auc_score

    called = p > 0.5
    missed, false = float(np.mean((y == 1) & ~called)), float(np.mean((y == 0) & called))
    return {
        "recall": float(called[y == 1].mean()),
        "precision": float(y[called].mean()) if called.any() else float("nan"),
        "cost": COST * missed + false,
        "mean p": float(p.mean()),
        "log loss": float(log_loss(y, p)),
        "AUC": float(roc_auc_score(y, p)),
    }


def plot(outcomes: list[tuple[str, NDArray[np.float64]]], y: NDArray[np.float64], path: Path) -> None:
    """Calibration, and the cost by where the line between click and no click is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    lines = np.linspace(0.02, 0.98, 97)
    for color, (name, p) in zip(("C1", "C0", "C2"), outcomes, strict=True):
        bins = np.array_split(np.argsort(p), 12)
        left.plot([p[b].mean() for b in bins], [y[b].mean() for b in bins], "o-", color=color, markersize=4, label=name)
        if color != "C2":
            costs = [np.mean(COST * ((y == 1) & (p <= line)) + ((y == 0) & (p > line))) for line in lines]
            right.plot(lines, costs, color=color, label=name)
            at_half = np.mean(COST * ((y == 1) & (p <= 0.5)) + ((y == 0) & (p > 0.5)))
            right.plot(0.5, at_half, "o", color=color)
            right.annotate(f"{at_half:.3f}", (0.5, at_half), (9, -12), textcoords="offset points", color=color)
    left.set(xlabel="predicted probability", ylabel="share of clicks", title="Calibration on the last day")
    right.set(xlabel="called a click above", ylabel="cost per row, in false alarms", title="Cost of the decisions")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=400_000, help="Rows of the click log, over eight days; the last one is held out.")
@click.option("--epochs", default=3)
@click.option("--workers", default=2, help="Local worker processes.")
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of everything.")
def main(rows: int, epochs: int, workers: int, output: Path) -> None:
    """Train with log loss and with the changed loss, and compare their decisions on the last day."""
    day, last = click_log(output / "clicks", rows)
    y = last["label"].to_numpy().astype(float)
    losses = (("log loss", "logistic"), ("missed clicks cost more", missed_clicks_cost_more))
    tables = job(output / "clicks", day, epochs, workers)
    shown = [(name, answers(tables, loss, last)) for name, loss in losses]
    shown.append((f"the same, odds divided by {COST:g}", recalibrated(shown[1][1])))
    print(f"{len(y):,} rows of the last day, {y.mean():.1%} clicks; a missed click costs {COST:g} false alarms")
    table = {name: measures(p, y) for name, p in shown}
    print(f"{'':29}" + "".join(f"{column:>10}" for column in table["log loss"]))
    for name, row in table.items():
        print(f"{name:29}" + "".join(f"{value:10.4f}" for value in row.values()))
    plot(shown, y, output / "custom_loss.png")
    print(f"plot: {output / 'custom_loss.png'}")


if __name__ == "__main__":
    main()
