"""What the defaults are worth on data that nobody tuned them for: planted logs, each with its Bayes loss.

    python benchmarks/defaults/bench_defaults.py [--replicas 1 8 32] [--seeds 3] [--trials 60] [--smoke]

Per log and number of replicas: test log loss of the settings that dfm had before, of its defaults without and with the
pilot, of these with model.choose = "best", of a linear model with the same defaults, and of the best that `dfm search`
found, means over seeds; and how far the defaults are from the best of all, in per cent, and above the linear model.
Rows to validate on are held out by dfm itself.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import click
from distributed import Client, LocalCluster
from planted_logs import PLANS, PlantedLog, plant

from dfm import jobs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import machine_line

BEFORE: dict[str, dict[str, Any]] = {
    "data": {"validation_fraction": 0},
    "model": {"n_factors": 8, "min_count_factors": 100, "init_stdev": 0.01},
    "training": {
        **{"learning_rate": 0.045, "factor_rate_scale": 0.45, "l2_factors": 0.005, "n_epochs": 5},
        "schedule": "final-decay",
    },
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "before": BEFORE,
    "fixed": {"training": {"tune": "none"}},
    "default": {},
    "choose best": {"model": {"choose": "best"}},
    "linear": {"model": {"n_factors": 0}},
}
_NEEDS_VALIDATION, _ENOUGH = "choose best", 1_000
"""Of fewer rows dfm holds none out, and nothing can be chosen by them."""


class Bench:
    """Trainings on one cluster, everything below a folder."""

    def __init__(self, folder: Path, client: Client, n_seeds: int) -> None:
        self.folder, self.client, self.n_seeds = folder, client, n_seeds

    def tables(self, log: PlantedLog, n_replicas: int, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """A job on a log."""
        tables: dict[str, dict[str, Any]] = {
            "data": {"train": log.train},
            "schema": dict(log.schema),
            "training": {"n_replicas": n_replicas},
            "cluster": {"cache": str(self.folder / "cache")},
            "output": {"directory": str(self.folder / "out"), "resume": False},
        }
        for name, table in changes.items():
            tables[name] = {**tables.get(name, {}), **table}
        return tables

    def loss(self, log: PlantedLog, tables: dict[str, Any]) -> float:
        """Mean test log loss over the seeds."""
        found = []
        for seed in range(self.n_seeds):
            seeded = {**tables, "model": {**tables.get("model", {}), "seed": seed}}
            result = jobs.train(seeded, self.client)
            found.append(jobs.evaluate(result.model_url, log.test, client=self.client)["log_loss"])
        return statistics.fmean(found)

    def searched(self, log: PlantedLog, n_replicas: int, n_trials: int) -> float:
        """Test loss of the best settings that a search finds."""
        tables = self.tables(log, n_replicas, {"search": {"n_trials": n_trials, "n_seeds": 1}})
        result = jobs.search(tables, self.client)
        best = tomllib.loads(Path(result.best).read_text())
        best["output"]["directory"] = str(self.folder / "best")
        return self.loss(log, best)


@click.command()
@click.option("--replicas", multiple=True, type=int, default=[8], show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--trials", default=60, show_default=True, help="Of the search; 0: none.")
@click.option("--logs", multiple=True, type=click.Choice(list(PLANS)), help="Only these.")
@click.option("--smoke", is_flag=True, help="Tiny: does it still run?")
def main(replicas: tuple[int, ...], seeds: int, trials: int, logs: tuple[str, ...], smoke: bool) -> None:
    """Print a table, a line per log and number of replicas."""
    share = 1.0
    if smoke:
        replicas, seeds, trials, logs, share = (2,), 1, 2, ("few rows",), 0.4
    folder = Path(tempfile.mkdtemp(prefix="dfm-defaults-"))
    print(machine_line())
    print("| log | replicas | Bayes | " + " | ".join(SETTINGS) + " | best of search | regret, % | over linear |")
    print("|:---|---:|" + "---:|" * (len(SETTINGS) + 4))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        bench = Bench(folder, client, seeds)
        for name in logs or PLANS:
            log = plant(name, folder, share=share)
            for n_replicas in replicas:
                row = {
                    key: bench.loss(log, bench.tables(log, n_replicas, each))
                    for key, each in SETTINGS.items()
                    if key != _NEEDS_VALIDATION or PLANS[name].n_rows * share >= _ENOUGH
                }
                found = trials and PLANS[name].n_rows * share >= _ENOUGH
                best = bench.searched(log, n_replicas, trials) if found else min(row.values())
                _print_row(log, n_replicas, row, min(best, *row.values()))
    shutil.rmtree(folder)


def _print_row(log: PlantedLog, n_replicas: int, row: dict[str, float], best: float) -> None:
    losses = " | ".join(f"{row[key]:.5f}" if key in row else "none" for key in SETTINGS) + f" | {best:.5f}"
    regret, over = 100 * (row["default"] / best - 1), row["default"] - row["linear"]
    print(f"| {log.name} | {n_replicas} | {log.bayes:.5f} | {losses} | {regret:.2f} | {over:+.5f} |", flush=True)


if __name__ == "__main__":
    main()
