"""What yesterday's model is worth: a chain of nights, each from the model before, by how much of it is forgotten.

    .venv/bin/python benchmarks/bench_warm_start.py [--rows 50000] [--days 6] [--window 2] [--folder …] [--smoke]

Each night trains two epochs on the `window` days before a day and is evaluated on that day. `cold` starts from the
beginning; the others from the night before, with training.warm_start_decay. Losses only: nothing is timed.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

import dfm
from dfm.data.synthetic import generate, read_truth

DECAYS = (0.0, 0.02, 0.1, 0.5)
FIRST = date(2026, 11, 14)


def night(
    client: Client, folder: Path, days: list[str], today: str, name: str, **training: Any
) -> tuple[str, dict[str, Any]]:
    """Train on some days, evaluate on the next one: the model and its metrics."""
    tables = {
        "data": {"train": [str(folder / "clicks" / f"day={day}") for day in days]},
        "schema": {"categorical": ["C*"], "numeric": ["I*"]},
        "training": {"n_replicas": 4, "n_epochs": 2, "early_stopping": False, **training},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / name / today), "resume": False},
    }
    model = dfm.train(tables, client).model_url
    return model, dfm.evaluate(model, str(folder / "clicks" / f"day={today}"), client=client)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="a day")
    parser.add_argument("--days", type=int, default=6)
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/warm-start"))
    parser.add_argument("--smoke", action="store_true", help="tiny: does it still run?")
    arguments = parser.parse_args()
    rows, n_days, decays = (1_000, 4, (0.1,)) if arguments.smoke else (arguments.rows, arguments.days, DECAYS)
    folder = (arguments.folder / f"{n_days}x{rows}").absolute()
    truth = generate(folder / "clicks", rows=rows * n_days, days=n_days, shards_per_day=2, overwrite=True)
    assert truth == read_truth(folder / "clicks")
    days = [str(FIRST + timedelta(n)) for n in range(n_days)]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        chains: dict[str, dict[str, Any]] = {"cold": {}} | {
            f"decay {decay}": {"warm_start_decay": decay} for decay in decays
        }
        print(f"log loss on the next day, {rows:,} rows a day, {arguments.window} days of training")
        print("              " + "".join(f"{day:>12}" for day in days[arguments.window :]) + "        mean")
        for name, knobs in chains.items():
            losses, model = [], ""
            for number in range(arguments.window, n_days):
                start = {**knobs, "warm_start": model} if model and knobs else {}
                window = days[number - arguments.window : number]
                model, metrics = night(client, folder, window, days[number], name, **start)
                losses.append(metrics["log_loss"])
            print(f"{name:14}" + "".join(f"{loss:12.5f}" for loss in (*losses, statistics.mean(losses))), flush=True)
    print("the truth     " + "".join(f"{day.log_loss:12.5f}" for day in truth.days[arguments.window :]))


if __name__ == "__main__":
    main()
