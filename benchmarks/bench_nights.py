"""A log in time order, a model a night: each from the one before, with and without what that remembers.

    .venv/bin/python benchmarks/bench_nights.py SHARD … --label label --categorical 'I*' 'C*'
        [--task regression] [--first 30] [--window 8] [--ahead 4] [--folder …] [--smoke]

The first model is trained on the `first` shards, each night on the `window` shards that follow, validated on the next
`ahead` and evaluated on the `window` after those. `cold` begins each night from nothing; `afresh` from the model before
without what it remembers of accumulators; `remembered` as a job does. Losses only: nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

import dfm
from dfm.data.synthetic import generate

WAYS = ("cold", "afresh", "remembered")


def without_memory(model: str, folder: Path) -> str:
    """A copy of a model that says nothing of accumulators."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["metadata"].pop("accumulators", None)
    (folder / "model.json").write_text(json.dumps(manifest))
    return str(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", help="Parquet files in time order")
    parser.add_argument("--label", default="label")
    parser.add_argument("--categorical", nargs="+", default=["C*"])
    parser.add_argument("--task", default="classification")
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--ahead", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/nights"))
    parser.add_argument("--smoke", action="store_true", help="tiny: does it still run?")
    told = parser.parse_args()
    shards, folder = [str(Path(shard).absolute()) for shard in told.shards], told.folder.absolute()
    if told.smoke:
        generate(folder / "clicks", rows=4_000, days=4, shards_per_day=2, overwrite=True)
        shards = sorted(str(path) for path in (folder / "clicks").rglob("*.parquet"))
        told.first, told.window, told.ahead = 3, 2, 1
    metric = "rmse" if told.task == "regression" else "log_loss"
    starts = range(told.first, len(shards) - told.window - told.ahead, told.window)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def night(name: str, begin: int, end: int, start: str) -> Any:
            tables = {
                "data": {"train": shards[begin:end], "validation": shards[end : end + told.ahead]},
                "schema": {"label": told.label, "categorical": told.categorical},
                "model": {"task": told.task},
                "training": {"n_replicas": 2, **({"warm_start": start} if start else {})},
                "cluster": {"cache": str(folder / "cache")},
                "output": {"directory": str(folder / name), "resume": False, "report": False},
            }
            return dfm.train(tables, client)

        first = night("first", 0, told.first, "")
        print(f"{metric} of the shards after those that validate; epochs: the one kept of those trained")
        for way in WAYS:
            model, losses, epochs = first.model_url, [], []
            for begin in starts:
                end = begin + told.window
                start = without_memory(model, folder / "start") if way == "afresh" else model
                result = night(f"{way}-{begin}", begin, end, "" if way == "cold" else start)
                model = result.model_url
                later = shards[end + told.ahead : end + told.ahead + told.window]
                losses.append(dfm.evaluate(model, later, client=client)[metric])
                epochs.append(f"{result.best_epoch}/{len(result.history)}")
            line = "".join(f"{loss:9.5f}" for loss in (*losses, statistics.mean(losses)))
            print(f"{way:12}{line}   {' '.join(epochs)}", flush=True)


if __name__ == "__main__":
    main()
