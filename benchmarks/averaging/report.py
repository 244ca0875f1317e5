"""Tables and plots of the laboratory's runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.cost_model import GIGABIT

Line = dict[str, Any]
NETWORKS = (1, 10, 100)
"""Gbit/s."""
TASK_SECONDS = 0.0005
TASKS_PER_REPLICA = 3
"""Train, cut and merge tasks of a round, through one scheduler."""


def write_report(lines: Path, output: Path) -> None:
    """table.md, and plots where matplotlib is installed."""
    runs = [json.loads(line) for line in lines.read_text().splitlines()]
    groups: dict[tuple[str, str, int, str], list[Line]] = defaultdict(list)
    for run in runs:
        groups[run["log"], run["experiment"], run["setting"]["n_replicas"], run["name"]].append(run)
    text = ["# The averaging laboratory", "", "Validation log loss (nats), mean over seeds ± its deviation."]
    for log in dict.fromkeys(run["log"] for run in runs):
        text += ["", f"## {log}", "", *_bars(log, groups), "", *_table(log, groups)]
    (output / "table.md").write_text("\n".join(text) + "\n")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    for log in dict.fromkeys(run["log"] for run in runs):
        _plot(log, groups, output / f"{log}.png")


def _losses(runs: Sequence[Line]) -> NDArray[np.float64]:
    """float64[seed, epoch]; what is not a number counts as infinite."""
    shortest = min(len(run["log_loss"]) for run in runs)
    return np.array([[x if x is not None else np.inf for x in run["log_loss"][:shortest]] for run in runs])


def _best(runs: Sequence[Line]) -> tuple[float, float, float]:
    """Mean and deviation over seeds of the best epoch's log loss, and its mean AUC."""
    losses = _losses(runs)
    best = losses.min(axis=1)
    aucs = [run["auc"][int(np.argmin(own))] for run, own in zip(runs, losses, strict=True)]
    spread = float(best.std(ddof=1)) if len(best) > 1 and np.isfinite(best).all() else 0.0
    return float(best.mean()), spread, float(np.mean(aucs))


def _table(log: str, groups: dict[tuple[str, str, int, str], list[Line]]) -> list[str]:
    text = [
        "| experiment | W | setting | R | seeds | epoch 1 | 2 | best | AUC | last | touched | MB pushed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (own, experiment, n_replicas, name), runs in groups.items():
        if own != log:
            continue
        losses, (best, spread, auc) = _losses(runs).mean(axis=0), _best(runs)
        setting = runs[0]["setting"]
        averages = f"{setting['averages']}, {setting['later_averages']}"
        text.append(
            f"| {experiment} | {n_replicas} | {name} | {averages} | {len(runs)} | {losses[0]:.4f} | {losses[1]:.4f} "
            f"| {best:.4f} ± {spread:.4f} | {auc:.4f} | {losses[-1]:.4f} | {runs[0]['touched']:,.0f} "
            f"| {runs[0]['round_bytes'] / 1e6:.2f} |"
        )
    return text


def _bars(log: str, groups: dict[tuple[str, str, int, str], list[Line]]) -> list[str]:
    """What averaging costs against the best sequential run, and what the dealing of rows costs."""
    sequential = [runs for key, runs in groups.items() if key[:2] == (log, "sequential")]
    if not sequential:
        return []
    best = min(_best(runs)[0] for runs in sequential)
    first = min(_losses(runs)[:, 0].mean() for runs in sequential)
    text = [f"Sequential, best of its rates: {best:.4f}; after the first epoch {first:.4f}. Against these:", ""]
    for (own, experiment, n_replicas, _), runs in groups.items():
        if (own, experiment) == (log, "replicas"):
            losses = _losses(runs).mean(axis=0)
            text.append(
                f"- W = {n_replicas}: best {_best(runs)[0] - best:+.4f}, first epoch {losses[0] - first:+.4f}, "
                f"second epoch against the best {losses[1] - best:+.4f}"
            )
    for n_replicas in (8, 32):
        plain = groups.get((log, "orders", n_replicas, "shuffled"))
        for (own, experiment, w, name), runs in groups.items():
            if plain and (own, experiment, w) == (log, "orders", n_replicas) and name != "shuffled":
                cost = _best(runs)[0] - _best(plain)[0]
                text.append(f"- W = {n_replicas}, {name} instead of shuffled: best {cost:+.4f}")
    return text


def simulated_seconds(run: Line, gigabits: float) -> float:
    """Seconds of one epoch with one worker per replica, in the network model of `costs`, from the run's own times."""
    setting, epochs = run["setting"], len(run["log_loss"])
    n_replicas = setting["n_replicas"]
    computed = (run["train_seconds"] + run["merge_seconds"]) / (n_replicas * epochs)
    if n_replicas == 1:
        return float(computed)
    # A worker sends its push and serves a pull of the same size, and as many blocks as workers share the sums.
    wire = 3 * run["round_bytes"] / (gigabits * GIGABIT)
    tasks = TASKS_PER_REPLICA * n_replicas * TASK_SECONDS
    rounds = setting["averages"] + (epochs - 1) * setting["later_averages"]
    return float(computed + (wire + tasks) * rounds / epochs)


def _plot(log: str, groups: dict[tuple[str, str, int, str], list[Line]], path: Path) -> None:
    """Loss of the defaults by W, against epochs, rows seen by a replica, and simulated seconds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2 + len(NETWORKS), figsize=(22, 4), sharey=True)
    for (own, experiment, n_replicas, _), runs in groups.items():
        if (own, experiment) != (log, "replicas"):
            continue
        losses = _losses(runs).mean(axis=0)
        epochs = np.arange(1, len(losses) + 1)
        curves = [epochs, epochs * runs[0]["rows"] / n_replicas]
        curves += [epochs * np.mean([simulated_seconds(run, speed) for run in runs]) for speed in NETWORKS]
        for axis, x in zip(axes, curves, strict=True):
            axis.plot(x, losses, marker=".", label=f"W = {n_replicas}")
    titles = ["epochs", "rows seen by a replica", *(f"simulated s, {speed} Gbit/s" for speed in NETWORKS)]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xlabel(title)
        if title != "epochs":
            axis.set_xscale("log")
    axes[0].set_ylabel(f"validation log loss, {log}")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
